-- Each ablation of a component has one row for each position of `clean`, and no other. (Rows, and sums of the positions and
-- of their squares, stand for the positions of a prompt: a position that is there twice, or missing, changes them.)
with expected as (
    select
        prompt,
        count(*) as rows,
        sum(cast(position as bigint)) as positions,
        sum(cast(position as bigint) * position) as squares
    from clean
    group by prompt
),
ablated as (
    select
        ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head, prompt,
        count(*) as rows,
        sum(cast(position as bigint)) as positions,
        sum(cast(position as bigint) * position) as squares
    from ablations
    group by ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head, prompt
),
compared as (
    select
        a.*,
        case when a.rows = e.rows and a.positions = e.positions and a.squares = e.squares then 1 else 0 end as agrees
    from ablated a
    left join expected e on a.prompt = e.prompt
),
whole as (
    select
        ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head,
        count(*) as prompts, sum(agrees) as whole_prompts
    from compared
    group by ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head
),
prompts as (
    select count(*) as expected_prompts from expected
)
select
    w.ablation, w.strength, w.hold, w.hold_value, w.hold_own_mlp, w.component, w.name, w.layer, w.head,
    w.prompts, w.whole_prompts, p.expected_prompts
from whole w
cross join prompts p
where w.prompts <> p.expected_prompts or w.whole_prompts <> p.expected_prompts
