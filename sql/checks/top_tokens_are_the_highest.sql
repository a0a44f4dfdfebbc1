-- A component's top tokens are `analysis.top_fraction` of the measured ones, and no others have a higher direct effect.
-- (Effects that agree to float32 rounding may rank either way.)
with expected as (
    select greatest(1, floor($top_fraction * count(*))) as tokens from clean
),
lowest as (
    select component, name, count(*) as tokens, min(direct_effect) as direct_effect
    from top_tokens
    group by component, name
),
counts as (
    select
        a.ablation, a.strength, a.hold, a.hold_value, a.hold_own_mlp, a.component, a.name, a.layer, a.head,
        max(l.tokens) as tokens,
        sum(case when a.direct_effect > l.direct_effect + 1e-4 * greatest(1, abs(l.direct_effect)) then 1 else 0 end)
            as above,
        sum(case when a.direct_effect > l.direct_effect - 1e-4 * greatest(1, abs(l.direct_effect)) then 1 else 0 end)
            as not_below
    from ablations a
    left join lowest l on a.component = l.component and a.name = l.name
    group by a.ablation, a.strength, a.hold, a.hold_value, a.hold_own_mlp, a.component, a.name, a.layer, a.head
)
select
    c.ablation, c.strength, c.hold, c.hold_value, c.hold_own_mlp, c.component, c.name, c.layer, c.head,
    c.tokens, e.tokens as expected, c.above, c.not_below
from counts c
cross join expected e
where c.tokens is null or c.tokens <> e.tokens or c.above >= c.tokens or c.not_below < c.tokens
