-- Question: how much of each ablated component is repaired, and how surely?
-- Grain:    a row of `head_summary`
-- Example:  select name, direct_effect, self_repair, self_repair_error from heads where subset = 'top'
--           order by self_repair desc limit 10
--
-- name, ablation, strength, hold, hold_value, hold_own_mlp, component, layer, head, subset: as in `head_summary`
-- tokens, prompts: as in `head_summary`
-- direct_effect, ablated_direct_effect, logit_change: as in `head_summary` [logits]
-- self_repair, self_repair_error, repair_attention, repair_mlp, repair_norm, repair_write_norm, repair_by_erasers: as in
--     `head_summary` [logits]
-- fraction_of_means: self_repair / direct_effect of the means
-- surely_repaired: whether self_repair is above two of its standard errors
select
    name, ablation, strength, hold, hold_value, hold_own_mlp, component, layer, head, subset,
    tokens, prompts,
    direct_effect, ablated_direct_effect, logit_change,
    self_repair, self_repair_error,
    repair_attention, repair_mlp, repair_norm, repair_write_norm, repair_by_erasers,
    fraction_of_means,
    self_repair > 2 * self_repair_error as surely_repaired
from head_summary
