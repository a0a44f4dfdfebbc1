-- Question: how much of a head's self-repair comes from an MLP, and from how few of its neurons?
-- Grain:    ablation × layer × head × neuron_layer, over the head's top tokens without a hold
--
-- ablation, layer, head: as in `ablations`
-- neuron_layer: block of the MLP
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
        ablation, layer, head, neuron_layer,
        count(*) as tokens,
        avg(cast(total_change as double)) as total_change,
        avg(cast(positive_change as double)) as positive_change,
        avg(cast(absolute_change as double)) as absolute_change,
        avg(cast(top_percent_change as double)) as top_percent_change
    from neuron_totals
    where hold = 'none' and component = 'head'
    group by ablation, layer, head, neuron_layer
),
-- Of the first five, those that fell are not repair.
first_five as (
    select
        ablation, layer, head, neuron_layer,
        sum(cast(greatest(change, 0) as double)) as change,
        count(*) as kept
    from neuron_repairs
    where hold = 'none' and component = 'head' and rank < 5
    group by ablation, layer, head, neuron_layer
),
curves as (
    select
        ablation, layer, head, neuron_layer,
        min(case when cumulative_share >= 0.5 then rank end) + 1 as neurons_for_half,
        min(case when cumulative_share >= 0.9 then rank end) + 1 as neurons_for_90
    from neuron_curves
    group by ablation, layer, head, neuron_layer
)
select
    t.ablation, t.layer, t.head, t.neuron_layer,
    t.tokens,
    h.self_repair,
    t.total_change,
    t.total_change / nullif(h.self_repair, 0) as share_of_self_repair,
    t.positive_change, t.absolute_change,
    t.top_percent_change / nullif(t.positive_change, 0) as top_percent_share,
    case when f.kept = 5 * t.tokens then f.change / t.tokens / nullif(t.positive_change, 0) end as top_five_share,
    c.neurons_for_half, c.neurons_for_90
from totals t
join head_summary h
    on t.ablation = h.ablation and h.hold = 'none' and h.component = 'head' and t.layer = h.layer and t.head = h.head
    and h.subset = 'top'
left join first_five f
    on t.ablation = f.ablation and t.layer = f.layer and t.head = f.head and t.neuron_layer = f.neuron_layer
left join curves c
    on t.ablation = c.ablation and t.layer = c.layer and t.head = c.head and t.neuron_layer = c.neuron_layer
order by t.ablation, t.layer, t.head, t.neuron_layer
