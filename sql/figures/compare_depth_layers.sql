-- Question: at what depth is there self-repair?
-- Grain:    a layer of $ablation, on its heads' top tokens
--
-- relative_depth, self_repair, fraction_of_means: as in `layer_summary`
select relative_depth, self_repair, fraction_of_means
from layer_summary
where component = 'head' and hold = 'none' and strength = 1 and ablation = $ablation and subset = 'top'
order by layer
