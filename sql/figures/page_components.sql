-- Question: what did ablating each component do on its top tokens?
-- Grain:    ablation × hold × component × layer × head, most self-repair first
--
-- component: `L9H6` for head 6 of layer 9, `L9 mlp` for a layer's whole MLP
-- ablation, hold: as in `ablations`
-- direct_effect, logit_change, self_repair, self_repair_error, repair_attention, repair_mlp, repair_norm: as in
--     `head_summary`
-- fraction_clipped, fraction_of_means: as in `head_summary`
select
    case component
        when 'head' then concat('L', layer, 'H', head)
        else concat('L', layer, ' ', component)
    end as component,
    ablation, hold,
    direct_effect, logit_change, self_repair, self_repair_error,
    repair_attention, repair_mlp, repair_norm,
    fraction_clipped, fraction_of_means
from head_summary
where subset = 'top'
order by self_repair desc, layer, head, component, ablation, hold
