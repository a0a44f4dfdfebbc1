-- Question: do the components that repair a head also change, and alike, when the head's whole block is skipped (so that
--           the next block reads the stream before it)?
-- Grain:    ablation × layer × head × subset × repairer × repairer_layer × repairer_head, of runs that ablate heads and, by
--           `zero`, blocks, without a hold; components after the block
--
-- ablation: of the head
-- layer, head: the ablated head; its layer is the skipped block
-- subset: `all` tokens; or `top`, which are the head's own in head_change and the block's in block_change
-- repairer, repairer_layer, repairer_head: the later component: `head` or `mlp`
-- head_change, head_error: mean change of its direct effect when the head is ablated, and the standard error [logits]
-- block_change, block_error: the same when the block is skipped [logits]
select
    h.ablation, h.layer, h.head, h.subset,
    h.component as repairer, h.repairer_layer, h.repairer_head,
    h.mean_change as head_change,
    h.standard_error as head_error,
    b.mean_change as block_change,
    b.standard_error as block_error
from repair_graph h
join repair_graph b
    on h.layer = b.layer and h.subset = b.subset and h.component = b.component
    and h.repairer_layer = b.repairer_layer and (h.repairer_head is not distinct from b.repairer_head)
where h.ablated = 'head' and h.hold = 'none' and b.ablated = 'block' and b.hold = 'none' and b.ablation = 'zero'
    and h.repairer_layer > h.layer
order by h.ablation, h.layer, h.head, h.subset, h.repairer_layer, h.component, h.repairer_head
