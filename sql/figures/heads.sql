-- Question: which heads matter, and which are repaired?
-- Grain:    an ablated head of $ablation, on all tokens
--
-- layer, head, direct_effect, logit_change, self_repair: as in `head_summary`
select layer, head, direct_effect, logit_change, self_repair
from head_summary
where component = 'head' and hold = 'none' and strength = 1 and ablation = $ablation and subset = 'all'
