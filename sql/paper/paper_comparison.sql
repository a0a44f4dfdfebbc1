-- Question: how far are this run's numbers from those that the paper's authors published for the same model, head by
--           head?
-- Grain:    ablation × metric × subset × layer × head, where the run's model is one the authors published
--
-- model: the model as the authors call it
-- ablation: of this run; the authors resampled
-- metric: the authors' name: direct_effects, ablated_direct_effects, logit_diff and self_repair_from_{heads,layers,LN} in
--     logits; percent_{heads,layers,LN}_of_DE as means of the ratio clipped to [0, 1]
-- top_fraction, subset: the share of tokens with the highest direct effect of that head, and its name in `head_summary`
-- name, layer, head: the ablated head
-- paper: the authors' value
-- ours: this run's value, from the column of `head_summary` that means the same
-- difference: ours - paper
with ours as (
    select *, case subset when 'top' then $top_fraction else 1.0 end as top_fraction
    from head_summary
    where component = 'head' and hold = 'none' and strength = 1
),
matched as (
    select
        p.model, o.ablation, p.metric, p.top_fraction, o.subset, o.name, o.layer, o.head,
        p.value as paper,
        cast(
            case p.metric
                when 'direct_effects' then o.direct_effect
                when 'ablated_direct_effects' then o.ablated_direct_effect
                when 'logit_diff' then o.logit_change
                when 'self_repair_from_heads' then o.repair_attention
                when 'self_repair_from_layers' then o.repair_mlp
                when 'self_repair_from_LN' then o.repair_norm
                when 'percent_heads_of_DE' then o.attention_clipped
                when 'percent_layers_of_DE' then o.mlp_clipped
                when 'percent_LN_of_DE' then o.norm_clipped
            end as double
        ) as ours
    from ours o
    join authors p on p.layer = o.layer and p.head = o.head and abs(p.top_fraction - o.top_fraction) < 1e-9
)
select model, ablation, metric, top_fraction, subset, name, layer, head, paper, ours, ours - paper as difference
from matched
order by model, ablation, metric, top_fraction, layer, head, name
