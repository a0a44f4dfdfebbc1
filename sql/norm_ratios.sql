-- Question: how much does an ablation shrink the final stream, and its norm's scale, and does it more where the component
--           matters most?
-- Grain:    ablation × hold × component × subset × measure × bucket of 0.01 (none without tokens), over all layers and heads
--
-- ablation, hold, component: as in `ablations`
-- subset: `all` tokens, or each component's `top` tokens
-- measure: `norm_scale`: clean / ablated scale of the final norm; `residual_norm`: ablated / clean norm of the final
--     stream
-- ratio: lower edge of the bucket; 3 stands for all from 3 on
-- tokens: tokens in the bucket, of each component anew
-- share: their share of the subset's tokens
with marked as (
    select
        a.ablation, a.hold, a.component,
        cast(a.norm_scale as double) / a.ablated_norm_scale as scale_ratio,
        cast(a.ablated_residual_norm as double) / c.residual_norm as residual_ratio,
        unnest(case when t.rank is null then ['all'] else ['all', 'top'] end) as subset
    from ablations a
    join clean c on a.prompt = c.prompt and a.position = c.position
    left join top_tokens t
        on a.component = t.component and a.layer = t.layer and coalesce(a.head, 65535) = coalesce(t.head, 65535)
        and a.prompt = t.prompt and a.position = t.position
),
buckets as (
    select ablation, hold, component, subset, 'norm_scale' as measure, floor(least(scale_ratio, 3) * 100) as bucket
    from marked
    union all
    select ablation, hold, component, subset, 'residual_norm' as measure, floor(least(residual_ratio, 3) * 100)
    from marked
),
counts as (
    select ablation, hold, component, subset, measure, bucket, count(*) as tokens
    from buckets
    group by ablation, hold, component, subset, measure, bucket
)
select
    ablation, hold, component, subset, measure,
    bucket / 100 as ratio,
    tokens,
    cast(tokens as double) / sum(tokens) over (partition by ablation, hold, component, subset, measure) as share
from counts
order by ablation, hold, component, subset, measure, ratio
