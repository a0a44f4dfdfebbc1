-- Question: on what text is self-repair strongest, where does it overshoot, and where is it most negative?
-- Grain:    ablation × strength × component × sort × rank: 25 of the components' top tokens of each sort, without a hold
--
-- ablation, strength, component: as in `ablations`
-- sort: `repaired`: highest self_repair; `over_repaired`: the logit rises most although ablation removes direct effect;
--     `negative`: lowest self_repair
-- rank: place in that order, from 1
-- name, layer, head, prompt, position: the ablated component and the token
-- text: up to 20 tokens and the one the model reads, then the next one, whose logit is measured, between « and »,
--     and up to 4 more; no marks where the prompt does not go on with the token that is measured
-- next_text: the token whose logit is measured, as text; null where the prompt does not go on with it
-- direct_effect, ablated_direct_effect, logit_change, self_repair: as in `ablations` [logits]
with measured as (
    select
        a.ablation, a.strength, a.component, a.name, a.layer, a.head, a.prompt, a.position,
        a.direct_effect, a.ablated_direct_effect, a.logit_change, a.self_repair,
        unnest(['repaired', 'over_repaired', 'negative']) as sort,
        unnest([
            a.self_repair,
            case when a.ablated_direct_effect < a.direct_effect then a.logit_change else 0 end,
            -a.self_repair
        ]) as size
    from ablations a
    join top_tokens t
        on a.component = t.component and a.name = t.name and a.prompt = t.prompt and a.position = t.position
    where a.hold = 'none'
),
ranked as (
    select
        *,
        cast(row_number() over (
            partition by ablation, strength, component, sort
            order by size desc, layer, head, name, prompt, position
        ) as int) as rank
    from measured
    where size > 0
),
around as (
    select
        r.*, t.position as place, t.text,
        -- In a prompt set, what is measured need not be the prompt's next token.
        t.position = r.position + 1 and (g.answer is null or g.answer = t.token) as is_measured
    from ranked r
    join tokens t on r.prompt = t.prompt
    left join targets g on r.prompt = g.prompt
    where r.rank <= 25 and t.position + 20 >= r.position and t.position <= r.position + 5
)
select
    a.ablation, a.strength, a.component, a.sort, a.rank,
    a.name, a.layer, a.head, a.prompt, a.position,
    string_agg(case when a.is_measured then '«' || a.text || '»' else a.text end, '' order by a.place) as text,
    max(case when a.is_measured then a.text end) as next_text,
    a.direct_effect, a.ablated_direct_effect, a.logit_change, a.self_repair
from around a
group by
    a.ablation, a.strength, a.component, a.sort, a.rank, a.name, a.layer, a.head, a.prompt, a.position,
    a.direct_effect, a.ablated_direct_effect, a.logit_change, a.self_repair
order by a.ablation, a.strength, a.component, a.sort, a.rank
