-- Question: what did each ablation do in each prompt?
-- Grain:    ablated component (`ablation` to `head`) × subset (`all` tokens; `top`: the component's `top_tokens`) ×
--           prompt (one without top tokens has no row of that subset)
--
-- ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head: as in `ablations`
-- subset: `all` or `top`
-- prompt: number of the prompt
-- tokens: tokens of the prompt in the subset
-- direct_effect, ablated_direct_effect, logit_change, self_repair, repair_attention, repair_mlp, repair_norm,
--     repair_write_norm, repair_write_norm_own, repair_by_erasers: means over them [logits]
-- nonzero_tokens: tokens among them with a direct effect other than 0
-- fraction_clipped, norm_clipped, write_norm_clipped, attention_clipped, mlp_clipped: means over the nonzero_tokens of
--     self_repair, and of its causes, over direct_effect, clipped to [0, 1]
-- ratio_tokens: tokens among them with |direct_effect| ≥ 1e-6
-- fraction_unclipped: mean over the ratio_tokens of self_repair / direct_effect
with marked as (
    select a.*, unnest(case when t.rank is null then ['all'] else ['all', 'top'] end) as subset
    from ablations a
    left join top_tokens t
        on a.component = t.component and a.name = t.name and a.prompt = t.prompt and a.position = t.position
)
select
    ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head, subset, prompt,
    count(*) as tokens,
    avg(cast(direct_effect as double)) as direct_effect,
    avg(cast(ablated_direct_effect as double)) as ablated_direct_effect,
    avg(cast(logit_change as double)) as logit_change,
    avg(cast(self_repair as double)) as self_repair,
    avg(cast(repair_attention as double)) as repair_attention,
    avg(cast(repair_mlp as double)) as repair_mlp,
    avg(cast(repair_norm as double)) as repair_norm,
    avg(cast(repair_write_norm as double)) as repair_write_norm,
    avg(cast(repair_write_norm_own as double)) as repair_write_norm_own,
    avg(cast(repair_by_erasers as double)) as repair_by_erasers,
    sum(case when direct_effect <> 0 then 1 else 0 end) as nonzero_tokens,
    avg(case when direct_effect <> 0 then least(greatest(self_repair / direct_effect, 0), 1) end) as fraction_clipped,
    avg(case when direct_effect <> 0 then least(greatest(repair_norm / direct_effect, 0), 1) end) as norm_clipped,
    avg(case when direct_effect <> 0 then least(greatest(repair_write_norm / direct_effect, 0), 1) end)
        as write_norm_clipped,
    avg(case when direct_effect <> 0 then least(greatest(repair_attention / direct_effect, 0), 1) end)
        as attention_clipped,
    avg(case when direct_effect <> 0 then least(greatest(repair_mlp / direct_effect, 0), 1) end) as mlp_clipped,
    sum(case when abs(direct_effect) >= 1e-6 then 1 else 0 end) as ratio_tokens,
    avg(case when abs(direct_effect) >= 1e-6 then cast(self_repair as double) / direct_effect end)
        as fraction_unclipped
from marked
group by ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head, subset, prompt
order by ablation, strength, hold, hold_value, hold_own_mlp, component, layer, head, name, subset, prompt
