-- Question: do later heads react to a missing block as to a missing head of it?
-- Grain:    subset × later head, for head $head of layer $layer ablated by $ablation and its whole block by `zero`
--
-- subset: `all` tokens; or `top`, which are the head's own in ablated and the block's in skipped
-- repairer_layer, repairer_head: the later head
-- ablated: mean change of its direct effect when the head is ablated [logits]
-- skipped: the same when the whole block is, so that the next block reads the stream before it [logits]
select h.subset, h.repairer_layer, h.repairer_head, h.mean_change as ablated, b.mean_change as skipped
from repair_graph h
join repair_graph b
    on h.layer = b.layer and h.repairer_name = b.repairer_name and h.subset = b.subset
where h.component = 'head' and h.hold = 'none' and h.strength = 1 and h.repairer = 'head' and h.repairer_layer > h.layer
    and h.ablation = $ablation and h.layer = $layer and h.head = $head
    and b.component = 'block' and b.hold = 'none' and b.strength = 1 and b.ablation = 'zero' and b.repairer = 'head'
