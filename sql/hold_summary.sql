-- Question: how much of the self-repair is gone when some later components are held at their clean values: for `erasers`,
--           how much of it is Anti-Erasure?
-- Grain:    ablated component (`ablation` to `head`, with a hold other than `none`) × subset
--
-- ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head: as in `ablations`
-- subset: `all` tokens, or the component's `top` tokens
-- tokens: tokens in the subset
-- direct_effect: mean direct effect [logits]
-- logit_change, held_logit_change: mean change of the correct token's logit, without holding and with [logits]
-- self_repair, held_self_repair: mean self-repair, without holding and with [logits]
-- share_removed: (self_repair - held_self_repair) / self_repair
select
    h.ablation, h.strength, h.hold, h.hold_value, h.hold_own_mlp, h.component, h.name, h.layer, h.head, h.subset,
    h.tokens,
    h.direct_effect,
    n.logit_change,
    h.logit_change as held_logit_change,
    n.self_repair,
    h.self_repair as held_self_repair,
    (n.self_repair - h.self_repair) / nullif(n.self_repair, 0) as share_removed
from head_summary h
join head_summary n
    on h.ablation = n.ablation and h.strength = n.strength and h.component = n.component and h.name = n.name
    and h.subset = n.subset
where h.hold <> 'none' and n.hold = 'none'
order by h.ablation, h.strength, h.hold, h.hold_value, h.hold_own_mlp, h.component, h.layer, h.head, h.name, h.subset
