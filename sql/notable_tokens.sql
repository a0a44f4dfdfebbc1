-- Question: on what text is self-repair strongest, where does it overshoot, and where is it most negative?
-- Grain:    ablation × component × sort × rank: 25 of the components' top tokens of each sort, without a hold
--
-- ablation, component: as in `ablations`
-- sort: `repaired`: highest self_repair; `over_repaired`: the logit rises most although ablation removes direct effect;
--     `negative`: lowest self_repair
-- rank: place in that order, from 1
-- layer, head, prompt, position: the ablated component and the token
-- text: up to 20 tokens before, the token the model reads between « and », up to 5 after
-- next_token: the token whose logit is measured, as text; null where the prompt ends before it
-- direct_effect, ablated_direct_effect, logit_change, self_repair: as in `ablations` [logits]
with measured as (
    select
        a.ablation, a.component, a.layer, a.head, a.prompt, a.position,
        a.direct_effect, a.ablated_direct_effect, a.logit_change, a.self_repair,
        unnest(['repaired', 'over_repaired', 'negative']) as sort,
        unnest([
            a.self_repair,
            case when a.ablated_direct_effect < a.direct_effect then a.logit_change else 0 end,
            -a.self_repair
        ]) as size
    from ablations a
    join top_tokens t
        on a.component = t.component and a.layer = t.layer and (a.head is not distinct from t.head)
        and a.prompt = t.prompt and a.position = t.position
    where a.hold = 'none'
),
ranked as (
    select
        *,
        row_number() over (
            partition by ablation, component, sort
            order by size desc, layer, head, prompt, position
        ) as rank
    from measured
    where size > 0
)
select
    r.ablation, r.component, r.sort, r.rank,
    r.layer, r.head, r.prompt, r.position,
    string_agg(case when t.position = r.position then '«' || t.text || '»' else t.text end, '' order by t.position)
        as text,
    max(case when t.position = r.position + 1 then t.text end) as next_token,
    r.direct_effect, r.ablated_direct_effect, r.logit_change, r.self_repair
from ranked r
join tokens t on r.prompt = t.prompt
where r.rank <= 25 and t.position + 20 >= r.position and t.position <= r.position + 5
group by
    r.ablation, r.component, r.sort, r.rank, r.layer, r.head, r.prompt, r.position,
    r.direct_effect, r.ablated_direct_effect, r.logit_change, r.self_repair
order by r.ablation, r.component, r.sort, r.rank
