-- Question: what did ablating each component do on its top tokens?
-- Grain:    a row of `head_summary` about top tokens, most self-repair first
--
-- name: as in `head_summary`
-- ablation, strength, hold: as in `ablations`
-- direct_effect, logit_change, self_repair, self_repair_error, repair_attention, repair_mlp, repair_norm,
--     repair_write_norm: as in `head_summary`
-- fraction_clipped, fraction_of_means: as in `head_summary`
select
    name,
    ablation, strength, hold,
    direct_effect, logit_change, self_repair, self_repair_error,
    repair_attention, repair_mlp, repair_norm, repair_write_norm,
    fraction_clipped, fraction_of_means
from head_summary
where subset = 'top'
order by self_repair desc, component, layer, head, name, ablation, strength, hold
