-- Question: does the logit fall by the direct effect that ablating a head takes away?
-- Grain:    an ablated head of $ablation, on its top tokens
--
-- layer, head, logit_change: as in `head_summary`
-- loss: mean direct effect of the head less that of what replaced it [logits]
select layer, head, direct_effect - ablated_direct_effect as loss, logit_change
from head_summary
where component = 'head' and hold = 'none' and strength = 1 and ablation = $ablation and subset = 'top'
