-- Every component's direct effect and the constant sum to the logit, to the rounding of what is summed.
with sums as (
    -- One number for prompt and position: grouping by two columns takes half as long again.
    select
        cast(prompt as bigint) * 4294967296 + position as place,
        sum(cast(direct_effect as double)) as total,
        sum(cast(abs(direct_effect) as double)) as size
    from direct_effects
    group by place
)
select c.prompt, c.position, c.logit, s.total, s.size
from clean c
left join sums s on cast(c.prompt as bigint) * 4294967296 + c.position = s.place
where s.total is null or abs(c.logit - s.total) > 1e-4 * (select coalesce(max(tolerance), 1) from rounding) * greatest(1, s.size)
