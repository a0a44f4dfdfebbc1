-- Every component's direct effect and the constant sum to the logit, to float32 rounding of what is summed.
with sums as (
    select prompt, position, sum(cast(direct_effect as double)) as total, sum(abs(cast(direct_effect as double))) as size
    from direct_effects
    group by prompt, position
)
select c.prompt, c.position, c.logit, s.total, s.size
from clean c
left join sums s on c.prompt = s.prompt and c.position = s.position
where s.total is null or abs(c.logit - s.total) > 1e-4 * greatest(1, s.size)
