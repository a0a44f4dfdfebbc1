-- Question: between what lie nearly all ratios of the ablated to the clean norm of the final stream?
-- Grain:    one row, over all heads and tokens of $ablation
--
-- low, high: what 0.1 % and 99.9 % of the ratios lie below, approximately
with ratios as (
    select a.layer, a.head, a.prompt, a.position, cast(a.ablated_residual_norm as double) / c.residual_norm as ratio
    from ablations a
    join clean c on a.prompt = c.prompt and a.position = c.position
    where a.component = 'head' and a.hold = 'none' and a.strength = 1 and a.ablation = $ablation
)
select
    approx_percentile_cont(0.001) within group (order by ratio) as low,
    approx_percentile_cont(0.999) within group (order by ratio) as high
from ratios
