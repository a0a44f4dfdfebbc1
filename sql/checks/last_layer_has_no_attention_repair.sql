-- No head comes after the heads of the last layer, so no head can repair them.
select a.ablation, a.hold, a.component, a.layer, a.head, a.prompt, a.position, a.repair_attention
from ablations a
join model m on a.layer = m.layers - 1
where a.component = 'head' and a.repair_attention <> 0
