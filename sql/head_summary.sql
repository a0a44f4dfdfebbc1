-- Question: how much of a head's direct effect does the rest of the model make up for when the head is ablated, and
--           through what?
-- Grain:    ablated component (`ablation` to `head`) × subset (`all` tokens; `top`: the component's `top_tokens`)
--
-- ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head: as in `ablations`
-- subset: `all` or `top`
-- tokens: tokens in the subset
-- prompts: prompts of these tokens; below ten or so, the standard error is not to be trusted
-- direct_effect: mean direct effect [logits]
-- ablated_direct_effect: mean direct effect of what replaced the head [logits]
-- logit_change: mean change of the correct token's logit [logits]
-- self_repair: mean self-repair [logits]
-- self_repair_error: its standard error, clustered by prompt [logits]
-- repair_attention, repair_mlp, repair_norm, repair_write_norm: means of the causes, which sum to self_repair [logits]
-- repair_write_norm_own: mean part of repair_write_norm from the ablated component's own part [logits]
-- repair_by_erasers: mean part that comes from components with a negative clean direct effect [logits]
-- fraction_clipped: mean over tokens of self_repair / direct_effect clipped to [0, 1]
-- fraction_unclipped: mean of that ratio, not clipped, over tokens with |direct_effect| ≥ 1e-6
-- fraction_of_means: self_repair / direct_effect of the means
-- norm_clipped, write_norm_clipped, attention_clipped, mlp_clipped: mean over tokens of each cause / direct_effect
--     clipped to [0, 1]
with means as (
    select
        ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head, subset,
        sum(tokens) as tokens,
        count(*) as prompts,
        sum(tokens * cast(direct_effect as double)) / sum(tokens) as direct_effect,
        sum(tokens * cast(ablated_direct_effect as double)) / sum(tokens) as ablated_direct_effect,
        sum(tokens * cast(logit_change as double)) / sum(tokens) as logit_change,
        sum(tokens * cast(self_repair as double)) / sum(tokens) as self_repair,
        sum(tokens * cast(repair_attention as double)) / sum(tokens) as repair_attention,
        sum(tokens * cast(repair_mlp as double)) / sum(tokens) as repair_mlp,
        sum(tokens * cast(repair_norm as double)) / sum(tokens) as repair_norm,
        sum(tokens * cast(repair_write_norm as double)) / sum(tokens) as repair_write_norm,
        sum(tokens * cast(repair_write_norm_own as double)) / sum(tokens) as repair_write_norm_own,
        sum(tokens * cast(repair_by_erasers as double)) / sum(tokens) as repair_by_erasers,
        sum(nonzero_tokens * cast(fraction_clipped as double)) / nullif(sum(nonzero_tokens), 0) as fraction_clipped,
        sum(nonzero_tokens * cast(norm_clipped as double)) / nullif(sum(nonzero_tokens), 0) as norm_clipped,
        sum(nonzero_tokens * cast(write_norm_clipped as double)) / nullif(sum(nonzero_tokens), 0) as write_norm_clipped,
        sum(nonzero_tokens * cast(attention_clipped as double)) / nullif(sum(nonzero_tokens), 0) as attention_clipped,
        sum(nonzero_tokens * cast(mlp_clipped as double)) / nullif(sum(nonzero_tokens), 0) as mlp_clipped,
        sum(ratio_tokens * cast(fraction_unclipped as double)) / nullif(sum(ratio_tokens), 0) as fraction_unclipped
    from prompt_summary
    group by ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head, subset
),
-- Σ over prompts of (Σ tokens of (x − mean))², the numerator of a cluster-robust variance.
spread as (
    select
        ablation, strength, hold, hold_value, hold_own_mlp, component, name, subset,
        sum(power(p.tokens * (p.self_repair - m.self_repair), 2)) as squares
    from prompt_summary p
    join means m using (ablation, strength, hold, hold_value, hold_own_mlp, component, name, subset)
    group by ablation, strength, hold, hold_value, hold_own_mlp, component, name, subset
)
select
    m.ablation, m.strength, m.hold, m.hold_value, m.hold_own_mlp, m.component, m.name, m.layer, m.head, m.subset,
    m.tokens, m.prompts,
    m.direct_effect, m.ablated_direct_effect, m.logit_change,
    m.self_repair,
    sqrt(s.squares * m.prompts / nullif(m.prompts - 1, 0)) / m.tokens as self_repair_error,
    m.repair_attention, m.repair_mlp, m.repair_norm, m.repair_write_norm, m.repair_write_norm_own, m.repair_by_erasers,
    m.fraction_clipped, m.fraction_unclipped,
    m.self_repair / nullif(m.direct_effect, 0) as fraction_of_means,
    m.norm_clipped, m.write_norm_clipped, m.attention_clipped, m.mlp_clipped
from means m
join spread s using (ablation, strength, hold, hold_value, hold_own_mlp, component, name, subset)
order by m.ablation, m.strength, m.hold, m.hold_value, m.hold_own_mlp, m.component, m.layer, m.head, m.name, m.subset
