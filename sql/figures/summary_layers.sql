-- Question: in which layers is most repaired?
-- Grain:    a layer of $ablation, on its heads' top tokens; the three with most self-repair
--
-- layer, self_repair, fraction_of_means: as in `layer_summary`
select layer, self_repair, fraction_of_means
from layer_summary
where component = 'head' and hold = 'none' and strength = 1 and ablation = $ablation and subset = 'top'
order by self_repair desc
limit 3
