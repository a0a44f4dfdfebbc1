-- Each ablation of a component covers exactly the positions that have a next token.
with ablated as (
    select ablation, hold, component, layer, head, count(*) as rows
    from ablations
    group by ablation, hold, component, layer, head
),
measured as (
    select count(*) as rows from tokens where next_token is not null
)
select a.ablation, a.hold, a.component, a.layer, a.head, a.rows, m.rows as expected
from ablated a
cross join measured m
where a.rows <> m.rows
