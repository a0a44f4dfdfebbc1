-- Question: how reliable is self-repair: on how many tokens is a head's loss not repaired, partly repaired or
--           over-repaired?
-- Grain:    ablation × hold × component × layer × head, over the tokens on which ablating takes more than 0.05 logits of
--           direct effect away (a head without such tokens has no row)
--
-- ablation, hold, component, layer, head: as in `ablations`
-- tokens: tokens on which direct_effect - ablated_direct_effect > 0.05
-- not_repaired: share of them with self_repair / that drop ≤ 0
-- partly_repaired: share of them between 0 and 1
-- over_repaired: share of them above 1
with drops as (
    select
        ablation, hold, component, layer, head, self_repair,
        direct_effect - ablated_direct_effect as lost
    from ablations
),
-- Counted over all tokens: reading every second one is slower than reading all.
counts as (
    select
        ablation, hold, component, layer, head,
        sum(case when lost > 0.05 then 1 else 0 end) as tokens,
        sum(case when lost > 0.05 and self_repair <= 0 then 1 else 0 end) as not_repaired,
        sum(case when lost > 0.05 and self_repair > lost then 1 else 0 end) as over_repaired
    from drops
    group by ablation, hold, component, layer, head
)
select
    ablation, hold, component, layer, head,
    tokens,
    cast(not_repaired as double) / tokens as not_repaired,
    cast(tokens - not_repaired - over_repaired as double) / tokens as partly_repaired,
    cast(over_repaired as double) / tokens as over_repaired
from counts
where tokens > 0
order by ablation, hold, component, layer, head
