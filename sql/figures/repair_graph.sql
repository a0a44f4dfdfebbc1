-- Question: which layers repair which?
-- Grain:    repairer (`head` or `mlp`) × layer of the ablated heads × later layer, for $ablation and top tokens
--
-- repairer: what changed: the later layer's heads together, or its MLP
-- layer: block of the ablated heads
-- repairer_layer: the later block
-- change: mean over the ablated heads of the summed change of direct effect [logits]
with edges as (
    select repairer, layer, head, repairer_layer, mean_change
    from repair_graph
    where component = 'head' and hold = 'none' and strength = 1 and subset = 'top' and ablation = $ablation
),
ablated as (
    select layer, count(distinct head) as heads
    from edges
    group by layer
)
select e.repairer, e.layer, e.repairer_layer, sum(e.mean_change) / max(a.heads) as change
from edges e
join ablated a on a.layer = e.layer
group by e.repairer, e.layer, e.repairer_layer
order by 1, 2, 3
