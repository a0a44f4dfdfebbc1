-- Question: between what lie nearly all ratios of the ablated to the clean scale of the final norm?
-- Grain:    one row, over all heads and tokens of $ablation
--
-- low, high: what 0.1 % and 99.9 % of the ratios lie below, approximately
with ratios as (
    select a.layer, a.head, a.prompt, a.position, cast(a.ablated_norm_scale as double) / a.norm_scale as ratio
    from ablations a
    where a.component = 'head' and a.hold = 'none' and a.strength = 1 and a.ablation = $ablation
)
select
    approx_percentile_cont(0.001) within group (order by ratio) as low,
    approx_percentile_cont(0.999) within group (order by ratio) as high
from ratios
