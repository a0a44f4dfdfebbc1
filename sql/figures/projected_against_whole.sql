-- Question: does what repairs react to the token's direction in a head's output, or to the rest of it?
-- Grain:    subset × ablated head
--
-- subset, layer, head: as in `head_summary`
-- whole: mean change of the logit when $whole replaces the whole output [logits]
-- projected: the same of the projection $projected [logits]
select w.subset, w.layer, w.head, w.logit_change as whole, p.logit_change as projected
from head_summary w
join head_summary p
    on w.hold = p.hold and w.component = p.component and w.layer = p.layer and w.head = p.head
    and w.strength = p.strength and w.subset = p.subset
where w.component = 'head' and w.hold = 'none' and w.strength = 1
    and w.ablation = $whole and p.ablation = $projected
