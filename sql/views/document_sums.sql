-- Question: how does self-repair differ between documents?
-- Grain:    ablated component (`ablation` to `head`) × document
-- Example:  select document, sum(self_repair) / sum(tokens) as mean_self_repair, sum(tokens) as tokens from document_sums
--           group by document order by mean_self_repair desc limit 10
--
-- ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head: as in `ablations`
-- document: as in `tokens`, of the token whose logit is measured (in a prompt set: of the prompt)
-- tokens: measured positions
-- prompts: prompts that contain them
-- direct_effect, ablated_direct_effect, logit_change, self_repair, repair_attention, repair_mlp, repair_norm,
--     repair_write_norm, repair_by_erasers: sums over the document's positions; divided by `tokens` they are means [logits]
-- repaired_tokens: positions with self_repair above 0
with places as (
    select
        prompt, position,
        coalesce(lead(document) over (partition by prompt order by position), document) as document
    from tokens
)
select
    a.ablation, a.strength, a.hold, a.hold_value, a.hold_own_mlp, a.component, a.name, a.layer, a.head, p.document,
    count(*) as tokens,
    count(distinct a.prompt) as prompts,
    sum(cast(a.direct_effect as double)) as direct_effect,
    sum(cast(a.ablated_direct_effect as double)) as ablated_direct_effect,
    sum(cast(a.logit_change as double)) as logit_change,
    sum(cast(a.self_repair as double)) as self_repair,
    sum(cast(a.repair_attention as double)) as repair_attention,
    sum(cast(a.repair_mlp as double)) as repair_mlp,
    sum(cast(a.repair_norm as double)) as repair_norm,
    sum(cast(a.repair_write_norm as double)) as repair_write_norm,
    sum(cast(a.repair_by_erasers as double)) as repair_by_erasers,
    sum(case when a.self_repair > 0 then 1 else 0 end) as repaired_tokens
from ablations a
join places p on a.prompt = p.prompt and a.position = p.position
group by a.ablation, a.strength, a.hold, a.hold_value, a.hold_own_mlp, a.component, a.name, a.layer, a.head, p.document
