-- Question: how much of a head's self-repair comes from an MLP, and from how few of its neurons?
-- Grain:    ablated head (`ablation` to `head`, without a hold) × neuron_layer, over the head's top tokens
--
-- ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head: as in `ablations`
-- neuron_layer, subset: as in `neuron_totals`
-- expert: null; a mixture of experts is one MLP
-- tokens: top tokens
-- self_repair: mean self-repair on them [logits]
-- total_change: mean change of the MLP's direct effect [logits]
-- share_of_self_repair: total_change / self_repair
-- positive_change, absolute_change: means of the sums over the neurons that rose, and over all of |change| [logits]
-- top_percent_share: share of positive_change in each token's 1 % of neurons that repair most
-- top_five_share: share of positive_change in each token's five neurons that repair most (null if fewer were kept)
-- neurons_for_half, neurons_for_90: fewest neurons, each token's most repairing first, with 50 % and 90 % of the absolute
--     change in the mean
with totals as (
    select
        ablation, strength, hold, hold_value, hold_own_mlp,
        component, name, layer, head, neuron_layer, subset, expert,
        count(*) as tokens,
        avg(cast(total_change as double)) as total_change,
        avg(cast(positive_change as double)) as positive_change,
        avg(cast(absolute_change as double)) as absolute_change,
        avg(cast(top_percent_change as double)) as top_percent_change
    from neuron_totals
    where hold = 'none' and component = 'head'
    group by
        ablation, strength, hold, hold_value, hold_own_mlp,
        component, name, layer, head, neuron_layer, subset, expert
),
-- Of the first five, those that fell are not repair.
first_five as (
    select
        ablation, strength, hold, hold_value, hold_own_mlp, component, name, neuron_layer, subset,
        sum(cast(greatest(change, 0) as double)) as change,
        count(*) as kept
    from neuron_repairs
    where hold = 'none' and component = 'head' and rank <= 5
    group by ablation, strength, hold, hold_value, hold_own_mlp, component, name, neuron_layer, subset
),
curves as (
    select
        ablation, strength, hold, hold_value, hold_own_mlp, component, name, neuron_layer, subset, expert,
        min(case when cumulative_share >= 0.5 then rank end) as neurons_for_half,
        min(case when cumulative_share >= 0.9 then rank end) as neurons_for_90
    from neuron_curves
    where hold = 'none' and component = 'head'
    group by ablation, strength, hold, hold_value, hold_own_mlp, component, name, neuron_layer, subset, expert
)
select
    t.ablation, t.strength, t.hold, t.hold_value, t.hold_own_mlp, t.component, t.name, t.layer, t.head,
    t.neuron_layer, t.subset, t.expert,
    t.tokens,
    h.self_repair,
    t.total_change,
    t.total_change / nullif(h.self_repair, 0) as share_of_self_repair,
    t.positive_change, t.absolute_change,
    t.top_percent_change / nullif(t.positive_change, 0) as top_percent_share,
    case when f.kept = 5 * t.tokens then f.change / t.tokens / nullif(t.positive_change, 0) end as top_five_share,
    cast(c.neurons_for_half as bigint) as neurons_for_half, cast(c.neurons_for_90 as bigint) as neurons_for_90
from totals t
join head_summary h using (ablation, strength, hold, hold_value, hold_own_mlp, component, name, subset)
left join first_five f
    on t.ablation = f.ablation and t.strength = f.strength and t.hold_value = f.hold_value
    and t.hold_own_mlp = f.hold_own_mlp and t.name = f.name and t.neuron_layer = f.neuron_layer
    and t.subset = f.subset
left join curves c
    on t.ablation = c.ablation and t.strength = c.strength and t.hold_value = c.hold_value
    and t.hold_own_mlp = c.hold_own_mlp and t.name = c.name and t.neuron_layer = c.neuron_layer
    and t.subset = c.subset and (t.expert is not distinct from c.expert)
order by
    t.ablation, t.strength, t.hold, t.hold_value, t.hold_own_mlp, t.component, t.layer, t.head, t.name,
    t.neuron_layer, t.subset, t.expert
