-- Nothing that attention does comes after the last layer, so no head can repair what is ablated there.
select
    a.ablation, a.strength, a.hold, a.hold_value, a.hold_own_mlp, a.component, a.name, a.layer, a.head,
    a.prompt, a.position, a.repair_attention
from ablations a
join model m on a.layer = m.layers - 1
where a.repair_attention <> 0
