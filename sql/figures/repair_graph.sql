-- Question: which layers repair which?
-- Grain:    component (`head` or `mlp`) × layer of the ablated heads × later layer, for $ablation and top tokens
--
-- component: what changed: the later layer's heads together, or its MLP
-- layer: block of the ablated heads
-- repairer_layer: the later block
-- change: mean over the ablated heads of the summed change of direct effect [logits]
with edges as (
    select component, layer, head, repairer_layer, mean_change
    from repair_graph
    where ablated = 'head' and hold = 'none' and subset = 'top' and ablation = $ablation
),
ablated as (
    select layer, count(distinct head) as heads
    from edges
    group by layer
)
select e.component, e.layer, e.repairer_layer, sum(e.mean_change) / max(a.heads) as change
from edges e
join ablated a on a.layer = e.layer
group by e.component, e.layer, e.repairer_layer
order by 1, 2, 3
