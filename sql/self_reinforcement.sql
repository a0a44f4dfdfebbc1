-- Question: does a head write more of what it wrote already (self-reinforcing), or less (self-repressing), when its output
--           is added once more, or several times, to what it reads?
-- Grain:    layer × head × added × multiple, over the positions of the prompts that were measured
--
-- layer, head, added, multiple: as in `self_additions`
-- tokens: positions
-- prompts: prompts they come from
-- direct_effect, new_direct_effect: mean direct effect, and after the addition [logits]
-- slope: of the line of new_direct_effect on direct_effect
-- slope_error: its standard error, a prompt's tokens taken as one observation
-- class: `reinforcing` if the slope is above 1 by more than two standard errors, `repressing` if it is so below 1, else
--     `neither`
with sums as (
    select
        layer, head, added, multiple, prompt,
        count(*) as tokens,
        sum(cast(direct_effect as double)) as x,
        sum(cast(new_direct_effect as double)) as y,
        sum(cast(direct_effect as double) * direct_effect) as xx,
        sum(cast(direct_effect as double) * new_direct_effect) as xy
    from self_additions
    group by layer, head, added, multiple, prompt
),
means as (
    select
        layer, head, added, multiple,
        count(*) as prompts,
        sum(tokens) as tokens,
        sum(x) / sum(tokens) as x,
        sum(y) / sum(tokens) as y
    from sums
    group by layer, head, added, multiple
),
-- The same sums about the means, so that the tokens are read once.
prompts as (
    select
        s.layer, s.head, s.added, s.multiple, s.prompt,
        s.xx - 2 * m.x * s.x + s.tokens * m.x * m.x as xx,
        s.xy - m.x * s.y - m.y * s.x + s.tokens * m.x * m.y as xy
    from sums s
    join means m on s.layer = m.layer and s.head = m.head and s.added = m.added and s.multiple = m.multiple
),
slopes as (
    select
        layer, head, added, multiple,
        count(*) as prompts,
        sum(xx) as xx,
        sum(xy) / nullif(sum(xx), 0) as slope
    from prompts
    group by layer, head, added, multiple
),
-- Σ over prompts of (Σ tokens of (x − mean) · residual)², the middle of a cluster-robust variance.
spread as (
    select p.layer, p.head, p.added, p.multiple, sum(power(p.xy - s.slope * p.xx, 2)) as squares
    from prompts p
    join slopes s on p.layer = s.layer and p.head = s.head and p.added = s.added and p.multiple = s.multiple
    group by p.layer, p.head, p.added, p.multiple
),
errors as (
    select
        s.*,
        sqrt(d.squares * s.prompts / nullif(s.prompts - 1, 0)) / nullif(s.xx, 0) as slope_error
    from slopes s
    join spread d on s.layer = d.layer and s.head = d.head and s.added = d.added and s.multiple = d.multiple
)
select
    e.layer, e.head, e.added, e.multiple,
    m.tokens, e.prompts,
    m.x as direct_effect,
    m.y as new_direct_effect,
    e.slope, e.slope_error,
    case
        when e.slope - 2 * e.slope_error > 1 then 'reinforcing'
        when e.slope + 2 * e.slope_error < 1 then 'repressing'
        else 'neither'
    end as class
from errors e
join means m on e.layer = m.layer and e.head = m.head and e.added = m.added and e.multiple = m.multiple
order by e.layer, e.head, e.added, e.multiple
