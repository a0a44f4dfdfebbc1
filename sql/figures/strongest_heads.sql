-- Question: which heads are repaired most on their top tokens?
-- Grain:    an ablated head of $ablation, most self-repair first
--
-- layer, head: as in `ablations`
select layer, head
from head_summary
where component = 'head' and hold = 'none' and strength = 1 and ablation = $ablation and subset = 'top'
order by self_repair desc, layer, head
