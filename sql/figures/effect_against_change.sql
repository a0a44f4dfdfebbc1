-- Question: does the logit fall by a head's direct effect when the head is ablated?
-- Grain:    subset × ablated head of $ablation
--
-- subset, layer, head, direct_effect, logit_change: as in `head_summary`
select subset, layer, head, direct_effect, logit_change
from head_summary
where component = 'head' and hold = 'none' and strength = 1 and ablation = $ablation
