-- Question: does the logit fall by a head's direct effect, on tokens where that effect is large?
-- Grain:    threshold of `analysis.thresholds` × head, for $ablation
--
-- threshold, layer, head, direct_effect, logit_change: as in `threshold_summary`
select threshold, layer, head, direct_effect, logit_change
from threshold_summary
where component = 'head' and hold = 'none' and strength = 1 and ablation = $ablation
order by threshold, layer, head
