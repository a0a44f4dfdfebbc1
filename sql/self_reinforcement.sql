-- Question: does a head write more of what it wrote already (self-reinforcing), or less (self-repressing), when its output
--           is added once more, or several times, to what it reads?
-- Grain:    head × added × multiple, over the positions of the prompts that were measured
--
-- name, layer, head, added, multiple: as in `self_additions`
-- tokens: positions
-- prompts: prompts of these tokens
-- direct_effect, new_direct_effect: mean direct effect, and after the addition [logits]
-- slope: of the line of new_direct_effect on direct_effect
-- slope_error: its standard error, clustered by prompt
-- class: `reinforcing` if the head writes more of it when its output is added (the slope is above 1) and less when it is
--     taken away (with a negative multiple, the slope is below 1), by more than two standard errors; `repressing` if it is
--     the other way round; else `neither`
with sums as (
    select
        name, layer, head, added, multiple, prompt,
        count(*) as tokens,
        sum(cast(direct_effect as double)) as x,
        sum(cast(new_direct_effect as double)) as y,
        sum(cast(direct_effect as double) * direct_effect) as xx,
        sum(cast(direct_effect as double) * new_direct_effect) as xy
    from self_additions
    group by name, layer, head, added, multiple, prompt
),
-- Windows and no joins with what was summed up: the tokens are then read once.
means as (
    select
        *,
        sum(x) over w / sum(tokens) over w as mean_x,
        sum(y) over w / sum(tokens) over w as mean_y
    from sums
    window w as (partition by name, added, multiple)
),
about_means as (
    select
        name, layer, head, added, multiple, tokens, mean_x, mean_y,
        xx - 2 * mean_x * x + tokens * mean_x * mean_x as xx,
        xy - mean_x * y - mean_y * x + tokens * mean_x * mean_y as xy
    from means
),
slopes as (
    select *, sum(xy) over w / nullif(sum(xx) over w, 0) as slope
    from about_means
    window w as (partition by name, added, multiple)
),
errors as (
    select
        name, layer, head, added, multiple,
        sum(tokens) as tokens,
        count(*) as prompts,
        max(mean_x) as direct_effect,
        max(mean_y) as new_direct_effect,
        max(slope) as slope,
        -- Σ over prompts of (Σ tokens of (x − mean) · residual)², the middle of a cluster-robust variance.
        sqrt(sum(power(xy - slope * xx, 2)) * count(*) / nullif(count(*) - 1, 0)) / nullif(sum(xx), 0) as slope_error
    from slopes
    group by name, layer, head, added, multiple
)
select
    name, layer, head, added, multiple,
    tokens, prompts,
    direct_effect, new_direct_effect,
    slope, slope_error,
    case
        when signum(multiple) * (slope - 1) > 2 * slope_error then 'reinforcing'
        when signum(multiple) * (slope - 1) < -2 * slope_error then 'repressing'
        else 'neither'
    end as class
from errors
order by layer, head, name, added, multiple
