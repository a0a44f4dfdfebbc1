-- Question: how much of a head's direct effect does the rest of the model make up for when the head is ablated, and
--           through what?
-- Grain:    ablation × hold × component × layer × head × subset (`all` tokens; `top`: those with the highest direct
--           effect of that head)
--
-- ablation, hold, component, layer, head: as in `ablations`
-- subset: `all` or `top`
-- tokens: tokens in the subset
-- prompts: prompts they come from; below ten or so, the standard error is not to be trusted
-- direct_effect: mean direct effect [logits]
-- ablated_direct_effect: mean direct effect of what replaced the head [logits]
-- logit_change: mean change of the correct token's logit [logits]
-- self_repair: mean self-repair [logits]
-- self_repair_error: its standard error, a prompt's tokens taken as one observation [logits]
-- repair_attention, repair_mlp, repair_norm: means of the causes, which sum to self_repair [logits]
-- repair_by_erasers: mean part that comes from components with a negative clean direct effect [logits]
-- fraction_clipped: mean over tokens of self_repair / direct_effect clipped to [0, 1]
-- fraction_unclipped: mean of that ratio, not clipped, over tokens with |direct_effect| ≥ 1e-6
-- fraction_of_means: self_repair / direct_effect of the means
-- norm_clipped, attention_clipped, mlp_clipped: mean over tokens of each cause / direct_effect clipped to [0, 1]
with ranked as (
    select
        *,
        row_number() over (
            partition by ablation, hold, component, layer, head
            order by direct_effect desc, prompt, position
        ) as rank,
        count(*) over (partition by ablation, hold, component, layer, head) as measured
    from ablations
),
subsets as (
    select 'all' as subset, * from ranked
    union all
    select 'top' as subset, * from ranked where rank <= greatest(1, floor($top_fraction * measured))
),
prompts as (
    select
        ablation, hold, component, layer, head, subset, prompt,
        count(*) as tokens,
        sum(cast(self_repair as double)) as self_repair
    from subsets
    group by ablation, hold, component, layer, head, subset, prompt
),
-- Σ over prompts of (Σ tokens of (x − mean))², the numerator of a cluster-robust variance.
spread as (
    select
        p.ablation, p.hold, p.component, p.layer, p.head, p.subset,
        count(*) as prompts,
        sum(power(p.self_repair - p.tokens * m.mean, 2)) as squares
    from prompts p
    join (
        select ablation, hold, component, layer, head, subset, sum(self_repair) / sum(tokens) as mean
        from prompts
        group by ablation, hold, component, layer, head, subset
    ) m
        on p.ablation = m.ablation and p.hold = m.hold and p.component = m.component
        and p.layer = m.layer and (p.head is not distinct from m.head) and p.subset = m.subset
    group by p.ablation, p.hold, p.component, p.layer, p.head, p.subset
),
means as (
    select
        ablation, hold, component, layer, head, subset,
        count(*) as tokens,
        avg(cast(direct_effect as double)) as direct_effect,
        avg(cast(ablated_direct_effect as double)) as ablated_direct_effect,
        avg(cast(logit_change as double)) as logit_change,
        avg(cast(self_repair as double)) as self_repair,
        avg(cast(repair_attention as double)) as repair_attention,
        avg(cast(repair_mlp as double)) as repair_mlp,
        avg(cast(repair_norm as double)) as repair_norm,
        avg(cast(repair_by_erasers as double)) as repair_by_erasers,
        avg(case when direct_effect <> 0 then least(greatest(self_repair / direct_effect, 0), 1) end) as fraction_clipped,
        avg(case when abs(direct_effect) >= 1e-6 then cast(self_repair as double) / direct_effect end)
            as fraction_unclipped,
        avg(case when direct_effect <> 0 then least(greatest(repair_norm / direct_effect, 0), 1) end) as norm_clipped,
        avg(case when direct_effect <> 0 then least(greatest(repair_attention / direct_effect, 0), 1) end) as attention_clipped,
        avg(case when direct_effect <> 0 then least(greatest(repair_mlp / direct_effect, 0), 1) end) as mlp_clipped
    from subsets
    group by ablation, hold, component, layer, head, subset
)
select
    m.ablation, m.hold, m.component, m.layer, m.head, m.subset,
    m.tokens, s.prompts,
    m.direct_effect, m.ablated_direct_effect, m.logit_change,
    m.self_repair,
    sqrt(s.squares * s.prompts / nullif(s.prompts - 1, 0)) / m.tokens as self_repair_error,
    m.repair_attention, m.repair_mlp, m.repair_norm, m.repair_by_erasers,
    m.fraction_clipped, m.fraction_unclipped,
    m.self_repair / nullif(m.direct_effect, 0) as fraction_of_means,
    m.norm_clipped, m.attention_clipped, m.mlp_clipped
from means m
join spread s
    on m.ablation = s.ablation and m.hold = s.hold and m.component = s.component
    and m.layer = s.layer and (m.head is not distinct from s.head) and m.subset = s.subset
order by m.ablation, m.hold, m.component, m.layer, m.head, m.subset
