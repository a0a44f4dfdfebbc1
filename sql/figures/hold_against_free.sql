-- Question: how much more does the logit fall when what could react is held?
-- Grain:    subset × ablated head of $ablation
--
-- subset, layer, head: as in `head_summary`
-- free: mean change of the logit without a hold [logits]
-- held: the same with $hold held [logits]
select f.subset, f.layer, f.head, f.logit_change as free, h.logit_change as held
from head_summary f
join head_summary h
    on f.ablation = h.ablation and f.component = h.component and f.layer = h.layer and f.head = h.head
    and f.subset = h.subset
where f.component = 'head' and f.hold = 'none' and f.strength = 1 and f.ablation = $ablation
    and h.hold = $hold and h.strength = 1
