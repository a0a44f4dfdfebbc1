-- Question: how does self-repair differ between prompts?
-- Grain:    ablated component (`ablation` to `head`) × prompt
-- Example:  select prompt, sum(self_repair) / sum(tokens) as mean_self_repair from prompt_sums group by prompt
--           order by mean_self_repair desc limit 10
--
-- ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head, prompt: as in `ablations`
-- tokens: measured positions of the prompt
-- direct_effect, ablated_direct_effect, logit_change, self_repair, repair_attention, repair_mlp, repair_norm,
--     repair_write_norm, repair_by_erasers: sums over the prompt's positions; divided by `tokens` they are means [logits]
-- repaired_tokens: positions with self_repair above 0
select
    ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head, prompt,
    count(*) as tokens,
    sum(cast(direct_effect as double)) as direct_effect,
    sum(cast(ablated_direct_effect as double)) as ablated_direct_effect,
    sum(cast(logit_change as double)) as logit_change,
    sum(cast(self_repair as double)) as self_repair,
    sum(cast(repair_attention as double)) as repair_attention,
    sum(cast(repair_mlp as double)) as repair_mlp,
    sum(cast(repair_norm as double)) as repair_norm,
    sum(cast(repair_write_norm as double)) as repair_write_norm,
    sum(cast(repair_by_erasers as double)) as repair_by_erasers,
    sum(case when self_repair > 0 then 1 else 0 end) as repaired_tokens
from ablations
group by ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head, prompt
