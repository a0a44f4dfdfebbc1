-- Question: do tokens on which a component matters more show more self-repair?
-- Grain:    ablated component (`ablation` to `head`) × threshold of `analysis.thresholds` (none if no token passes it)
--
-- ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head: as in `ablations`
-- threshold: lower bound of |direct_effect| [logits]
-- tokens: tokens with a |direct_effect| above it
-- direct_effect, ablated_direct_effect, logit_change, self_repair: means over them [logits]
select
    a.ablation, a.strength, a.hold, a.hold_value, a.hold_own_mlp, a.component, a.name, a.layer, a.head, t.threshold,
    count(*) as tokens,
    avg(cast(a.direct_effect as double)) as direct_effect,
    avg(cast(a.ablated_direct_effect as double)) as ablated_direct_effect,
    avg(cast(a.logit_change as double)) as logit_change,
    avg(cast(a.self_repair as double)) as self_repair
from ablations a
join thresholds t on abs(a.direct_effect) > t.threshold
where abs(a.direct_effect) > (select min(threshold) from thresholds)
group by a.ablation, a.strength, a.hold, a.hold_value, a.hold_own_mlp, a.component, a.name, a.layer, a.head, t.threshold
order by a.ablation, a.strength, a.hold, a.hold_value, a.hold_own_mlp, a.component, a.layer, a.head, a.name, t.threshold
