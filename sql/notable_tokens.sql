-- Question: on what text is self-repair strongest, where does it overshoot, and where is it most negative?
-- Grain:    ablation × component × sort × rank: 25 of the components' top tokens of each sort, with nothing held
--
-- ablation, component: as in `ablations`
-- sort: `repaired`: highest self_repair; `over_repaired`: the logit rises most although ablating took direct effect away;
--     `negative`: lowest self_repair
-- rank: place in that order, from 1
-- layer, head, prompt, position: the ablated component and the token
-- text: up to 20 tokens before, the token the model reads between « and », up to 5 after
-- next_token: the token whose logit is measured, as text; null where the prompt ends before it
-- direct_effect, ablated_direct_effect, logit_change, self_repair: as in `ablations` [logits]
with measured as (
    select a.*
    from ablations a
    join top_tokens t
        on a.component = t.component and a.layer = t.layer and coalesce(a.head, 65535) = coalesce(t.head, 65535)
        and a.prompt = t.prompt and a.position = t.position
    where a.hold = 'none'
),
sorts as (
    select 'repaired' as sort, self_repair as size, * from measured where self_repair > 0
    union all
    select 'over_repaired' as sort, logit_change as size, * from measured
    where logit_change > 0 and ablated_direct_effect < direct_effect
    union all
    select 'negative' as sort, -self_repair as size, * from measured where self_repair < 0
),
ranked as (
    select
        *,
        row_number() over (
            partition by ablation, component, sort
            order by size desc, layer, head, prompt, position
        ) as rank
    from sorts
),
notable as (
    select * from ranked where rank <= 25
),
texts as (
    select
        n.ablation, n.component, n.sort, n.rank,
        string_agg(case when t.position = n.position then '«' || t.text || '»' else t.text end, '' order by t.position)
            as text,
        max(case when t.position = n.position + 1 then t.text end) as next_token
    from notable n
    join tokens t on n.prompt = t.prompt
    where t.position + 20 >= n.position and t.position <= n.position + 5
    group by n.ablation, n.component, n.sort, n.rank
)
select
    n.ablation, n.component, n.sort, n.rank,
    n.layer, n.head, n.prompt, n.position,
    t.text, t.next_token,
    n.direct_effect, n.ablated_direct_effect, n.logit_change, n.self_repair
from notable n
join texts t on n.ablation = t.ablation and n.component = t.component and n.sort = t.sort and n.rank = t.rank
order by n.ablation, n.component, n.sort, n.rank
