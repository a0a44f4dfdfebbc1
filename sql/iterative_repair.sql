-- Question: do the components that repair a head also change, and alike, when the head's whole block is skipped (so that
--           the next block reads the stream before it)?
-- Grain:    ablation × strength × head × subset × repairer, of runs that ablate heads and, by `zero`, blocks, without a hold;
--           components after the block
--
-- ablation, strength: of the head
-- name, layer, head: the ablated head; its layer is the skipped block
-- subset: `all` tokens; or `top`, which are the head's own in head_change and the block's in block_change
-- repairer, repairer_name, repairer_layer, repairer_head: the later component: `head` or `mlp`
-- head_change, head_error: mean change of its direct effect when the head is ablated, and the standard error [logits]
-- block_change, block_error: the same when the block is skipped [logits]
select
    h.ablation, h.strength, h.name, h.layer, h.head, h.subset,
    h.repairer, h.repairer_name, h.repairer_layer, h.repairer_head,
    h.mean_change as head_change,
    h.standard_error as head_error,
    b.mean_change as block_change,
    b.standard_error as block_error
from repair_graph h
join repair_graph b
    on h.layer = b.layer and h.subset = b.subset and h.repairer_name = b.repairer_name
where h.component = 'head' and h.hold = 'none' and b.component = 'block' and b.hold = 'none' and b.ablation = 'zero'
    and b.strength = 1 and h.repairer_layer > h.layer
order by
    h.ablation, h.strength, h.layer, h.head, h.name, h.subset,
    h.repairer_layer, h.repairer, h.repairer_head, h.repairer_name
