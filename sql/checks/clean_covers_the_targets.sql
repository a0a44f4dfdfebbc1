-- `clean` has one row for each token with a next token; in a prompt set, one for each row of `targets`.
with wanted as (
    select prompt, position from targets
    union all
    select prompt, position from tokens where next_token is not null and (select count(*) from targets) = 0
),
counts as (
    select prompt, position, 1 as wanted, 0 as measured from wanted
    union all
    select prompt, position, 0 as wanted, 1 as measured from clean
)
select prompt, position, sum(wanted) as wanted, sum(measured) as measured
from counts
group by prompt, position
having sum(wanted) <> 1 or sum(measured) <> 1
