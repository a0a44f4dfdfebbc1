-- Question: how reliable is self-repair: on how many tokens is a head's loss not repaired, partly repaired or
--           over-repaired?
-- Grain:    ablated component (`ablation` to `head`), over the tokens on which ablating takes more than 0.05 logits of
--           direct effect away (a head without such tokens has no row)
--
-- ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head: as in `ablations`
-- tokens: tokens on which direct_effect - ablated_direct_effect > 0.05
-- not_repaired: share of them with self_repair / that drop ≤ 0
-- partly_repaired: share of them between 0 and 1
-- over_repaired: share of them above 1
with drops as (
    select
        ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head, self_repair,
        direct_effect - ablated_direct_effect as lost
    from ablations
)
select
    ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head,
    count(*) as tokens,
    avg(case when self_repair <= 0 then 1.0 else 0.0 end) as not_repaired,
    avg(case when self_repair > 0 and self_repair <= lost then 1.0 else 0.0 end) as partly_repaired,
    avg(case when self_repair > lost then 1.0 else 0.0 end) as over_repaired
from drops
where lost > 0.05
group by ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head
order by ablation, strength, hold, hold_value, hold_own_mlp, component, layer, head, name
