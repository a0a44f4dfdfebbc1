-- Question: in a prompt set, how well does the model do the task, and how well without a component?
-- Grain:    ablated component (`ablation` to `head`) × contrast; empty unless the corpus is a prompt set
--
-- ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head: as in `ablations`
-- contrast: `difference` of the logits of `answer` and `wrong`, or the `logit` of the answer, for prompts without `wrong`
-- prompts: prompts
-- logit: mean logit or difference [logits]
-- logit_change: its mean change by the ablation [logits]
-- self_repair: mean self-repair [logits]
-- preferred: share of prompts on which the answer has the higher logit (null without `wrong`)
-- ablated_preferred: the same after the ablation
select
    a.ablation, a.strength, a.hold, a.hold_value, a.hold_own_mlp, a.component, a.name, a.layer, a.head,
    case when t.wrong is null then 'logit' else 'difference' end as contrast,
    count(*) as prompts,
    avg(cast(c.logit as double)) as logit,
    avg(cast(a.logit_change as double)) as logit_change,
    avg(cast(a.self_repair as double)) as self_repair,
    avg(case when t.wrong is null then null when c.logit > 0 then 1.0 else 0.0 end) as preferred,
    avg(case when t.wrong is null then null when c.logit + a.logit_change > 0 then 1.0 else 0.0 end)
        as ablated_preferred
from ablations a
join clean c on a.prompt = c.prompt and a.position = c.position
join targets t on a.prompt = t.prompt
group by a.ablation, a.strength, a.hold, a.hold_value, a.hold_own_mlp, a.component, a.name, a.layer, a.head, contrast
order by a.ablation, a.strength, a.hold, a.hold_value, a.hold_own_mlp, a.component, a.layer, a.head, a.name, contrast
