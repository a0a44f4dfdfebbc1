-- Question: how much does an ablation shrink the final stream, and its norm's scale, and does it more where the component
--           matters most?
-- Grain:    ablation × strength × hold × hold_value × hold_own_mlp × component × subset × measure × bucket of 0.01 (none
--           without tokens), over all layers and heads
--
-- ablation, strength, hold, hold_value, hold_own_mlp, component: as in `ablations`
-- subset: `all` tokens, or each component's `top` tokens
-- measure: `norm_scale`: clean / ablated scale of the final norm; `residual_norm`: ablated / clean norm of the final
--     stream
-- ratio: lower edge of the bucket; the bucket 3 has all ratios of 3 or more
-- tokens: tokens in the bucket, counted per component
-- share: their share of the subset's tokens
with ratios as (
    select
        a.ablation, a.strength, a.hold, a.hold_value, a.hold_own_mlp, a.component,
        t.rank is not null as is_top,
        floor(least(cast(a.norm_scale as double) / a.ablated_norm_scale, 3) * 100) as scale_bucket,
        floor(least(cast(a.ablated_residual_norm as double) / c.residual_norm, 3) * 100) as residual_bucket
    from ablations a
    join clean c on a.prompt = c.prompt and a.position = c.position
    left join top_tokens t
        on a.component = t.component and a.name = t.name and a.prompt = t.prompt and a.position = t.position
),
-- Counted before they are laid out, so that all tokens are read once.
pairs_of_buckets as (
    select
        ablation, strength, hold, hold_value, hold_own_mlp, component, is_top, scale_bucket, residual_bucket,
        count(*) as tokens
    from ratios
    group by ablation, strength, hold, hold_value, hold_own_mlp, component, is_top, scale_bucket, residual_bucket
),
by_subset as (
    select *, unnest(case when is_top then ['all', 'top'] else ['all'] end) as subset
    from pairs_of_buckets
),
by_measure as (
    select
        ablation, strength, hold, hold_value, hold_own_mlp, component, subset, tokens,
        unnest(['norm_scale', 'residual_norm']) as measure,
        unnest([scale_bucket, residual_bucket]) as bucket
    from by_subset
),
counts as (
    select ablation, strength, hold, hold_value, hold_own_mlp, component, subset, measure, bucket, sum(tokens) as tokens
    from by_measure
    group by ablation, strength, hold, hold_value, hold_own_mlp, component, subset, measure, bucket
)
select
    ablation, strength, hold, hold_value, hold_own_mlp, component, subset, measure,
    bucket / 100 as ratio,
    tokens,
    cast(tokens as double) / sum(tokens) over w as share
from counts
window w as (partition by ablation, strength, hold, hold_value, hold_own_mlp, component, subset, measure)
order by ablation, strength, hold, hold_value, hold_own_mlp, component, subset, measure, ratio
