-- Question: what are the ablated components called, and how much of each is repaired?
-- Grain:    a row of `head_summary`
-- Example:  select name, direct_effect, self_repair, self_repair_error from heads where subset = 'top'
--           order by self_repair desc limit 10
--
-- name: `L9H6` for head 6 of layer 9; `MLP9`, `ATT9` and `BLOCK9` for a layer's whole MLP, attention, and both
-- ablation, hold, component, layer, head, subset: as in `head_summary`
-- tokens, prompts: as in `head_summary`
-- direct_effect, ablated_direct_effect, logit_change: as in `head_summary` [logits]
-- self_repair, self_repair_error, repair_attention, repair_mlp, repair_norm, repair_by_erasers: as in `head_summary`
--     [logits]
-- fraction_of_means: self_repair / direct_effect of the means
-- surely_repaired: whether self_repair is above two of its standard errors
select
    case component
        when 'head' then concat('L', layer, 'H', head)
        when 'mlp' then concat('MLP', layer)
        when 'attention' then concat('ATT', layer)
        when 'block' then concat('BLOCK', layer)
    end as name,
    ablation, hold, component, layer, head, subset,
    tokens, prompts,
    direct_effect, ablated_direct_effect, logit_change,
    self_repair, self_repair_error,
    repair_attention, repair_mlp, repair_norm, repair_by_erasers,
    fraction_of_means,
    self_repair > 2 * self_repair_error as surely_repaired
from head_summary
