-- Question: do the same neurons repair a head on many tokens?
-- Grain:    ablated head (`ablation` to `head`) × neuron_layer × rank: the ten neurons that are most often among the ten that repair
--           most, on the head's top tokens without a hold
--
-- ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head: as in `ablations`
-- neuron_layer, subset, expert: as in `neuron_repairs`
-- rank: place by tokens, from 1; ties in order of expert and neuron
-- neuron: which neuron of the MLP or of the expert
-- tokens: top tokens on which it is among the ten
-- share: their share of the head's top tokens
-- direct_effect, change: means over those tokens of its clean direct effect and of its change [logits]
with measured as (
    select ablation, strength, hold, hold_value, hold_own_mlp, component, name, neuron_layer, subset, count(*) as tokens
    from neuron_totals
    where hold = 'none' and component = 'head'
    group by ablation, strength, hold, hold_value, hold_own_mlp, component, name, neuron_layer, subset
),
neurons as (
    select
        ablation, strength, hold, hold_value, hold_own_mlp,
        component, name, layer, head, neuron_layer, subset, expert, neuron,
        count(*) as tokens,
        sum(cast(direct_effect as double)) as direct_effect,
        sum(cast(change as double)) as change
    from neuron_repairs
    where hold = 'none' and component = 'head' and rank <= 10
    group by
        ablation, strength, hold, hold_value, hold_own_mlp,
        component, name, layer, head, neuron_layer, subset, expert, neuron
),
ranked as (
    select
        *,
        cast(row_number() over (
            partition by ablation, strength, hold, hold_value, hold_own_mlp, component, name, neuron_layer, subset
            order by tokens desc, expert, neuron
        ) as int) as rank
    from neurons
)
select
    r.ablation, r.strength, r.hold, r.hold_value, r.hold_own_mlp, r.component, r.name, r.layer, r.head,
    r.neuron_layer, r.subset, r.expert, r.rank, r.neuron,
    r.tokens,
    cast(r.tokens as double) / m.tokens as share,
    r.direct_effect / r.tokens as direct_effect, r.change / r.tokens as change
from ranked r
join measured m
    on r.ablation = m.ablation and r.strength = m.strength and r.hold_value = m.hold_value
    and r.hold_own_mlp = m.hold_own_mlp and r.name = m.name and r.neuron_layer = m.neuron_layer
    and r.subset = m.subset
where r.rank <= 10
order by
    r.ablation, r.strength, r.hold, r.hold_value, r.hold_own_mlp, r.component, r.layer, r.head, r.name,
    r.neuron_layer, r.subset, r.expert, r.rank
