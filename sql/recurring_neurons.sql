-- Question: do the same neurons repair a head on many tokens?
-- Grain:    ablation × layer × head × neuron_layer × rank: the ten neurons that are most often among the ten that repair
--           most, on the head's top tokens without a hold
--
-- ablation, layer, head: as in `ablations`
-- neuron_layer: block of the MLP
-- rank: place by tokens, from 1; ties in order of the neuron
-- neuron: which neuron of the MLP
-- tokens: top tokens on which it is among the ten
-- share: their share of the head's top tokens
-- direct_effect, change: means over those tokens of its clean direct effect and of its change [logits]
with measured as (
    select ablation, layer, head, neuron_layer, count(*) as tokens
    from neuron_totals
    where hold = 'none' and component = 'head'
    group by ablation, layer, head, neuron_layer
),
neurons as (
    select
        ablation, layer, head, neuron_layer, neuron,
        count(*) as tokens,
        sum(cast(direct_effect as double)) as direct_effect,
        sum(cast(change as double)) as change
    from neuron_repairs
    where hold = 'none' and component = 'head' and rank < 10
    group by ablation, layer, head, neuron_layer, neuron
),
ranked as (
    select
        *,
        row_number() over (partition by ablation, layer, head, neuron_layer order by tokens desc, neuron) as rank
    from neurons
)
select
    r.ablation, r.layer, r.head, r.neuron_layer, r.rank, r.neuron,
    r.tokens,
    cast(r.tokens as double) / m.tokens as share,
    r.direct_effect / r.tokens as direct_effect, r.change / r.tokens as change
from ranked r
join measured m
    on r.ablation = m.ablation and r.layer = m.layer and r.head = m.head and r.neuron_layer = m.neuron_layer
where r.rank <= 10
order by r.ablation, r.layer, r.head, r.neuron_layer, r.rank
