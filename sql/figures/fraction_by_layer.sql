-- Question: which fraction of the direct effect is repaired in each layer?
-- Grain:    subset × layer of $ablation
--
-- layer, subset, self_repair, fraction_of_means, fraction_clipped: as in `layer_summary`
select layer, subset, self_repair, fraction_of_means, fraction_clipped
from layer_summary
where component = 'head' and hold = 'none' and strength = 1 and ablation = $ablation
order by layer
