-- Question: is a head repaired by the same components on every token?
-- Grain:    a top token of head $head of layer $layer, and one of the ten components that change most, for $ablation
--
-- prompt, position, repairer, repairer_layer, repairer_head, change: as in `component_repairs`
select prompt, position, repairer, repairer_layer, repairer_head, change
from component_repairs
where component = 'head' and hold = 'none' and strength = 1 and ablation = $ablation and layer = $layer and head = $head
order by prompt, position, rank
