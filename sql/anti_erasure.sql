-- Question: is self-repair Anti-Erasure: do components and neurons that pushed against the token push less once the head
--           is ablated?
-- Grain:    ablated component (`ablation` to `head`) × neuron_layer (null where no neurons were measured), over the
--           component's top tokens
--
-- ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head: as in `ablations`
-- neuron_layer, subset: as in `neuron_totals`
-- expert: null; a mixture of experts is one MLP
-- component_share: part of repair_attention + repair_mlp that comes from components with a negative clean direct effect
-- tokens: top tokens whose neurons were measured
-- first_direct_effect, first_change: mean clean direct effect of each token's most repairing neuron, and of its change
--     [logits]
-- first_erases: share of tokens whose most repairing neuron has a negative clean direct effect
-- first_erases_less: share of tokens on which it has, and comes closer to 0
-- ten_erase, ten_erase_less: the same shares among the ten neurons (fewer if fewer were kept) that repair most
-- ten_share: part of the change of those ten that comes from neurons with a negative clean direct effect
with components as (
    select
        ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head,
        repair_by_erasers / nullif(repair_attention + repair_mlp, 0) as component_share
    from head_summary
    where subset = 'top'
),
marked as (
    select
        *,
        case when direct_effect < 0 then 1.0 else 0.0 end as erases,
        case when direct_effect < 0 and abs(direct_effect + change) < abs(direct_effect) then 1.0 else 0.0 end
            as erases_less
    from neuron_repairs
    where rank <= 10
),
neurons as (
    select
        ablation, strength, hold, hold_value, hold_own_mlp, component, name, neuron_layer, subset,
        sum(case when rank = 1 then 1 else 0 end) as tokens,
        avg(case when rank = 1 then cast(direct_effect as double) end) as first_direct_effect,
        avg(case when rank = 1 then cast(change as double) end) as first_change,
        avg(case when rank = 1 then erases end) as first_erases,
        avg(case when rank = 1 then erases_less end) as first_erases_less,
        avg(erases) as ten_erase,
        avg(erases_less) as ten_erase_less,
        sum(erases * change) / nullif(sum(cast(change as double)), 0) as ten_share
    from marked
    group by ablation, strength, hold, hold_value, hold_own_mlp, component, name, neuron_layer, subset
)
select
    c.ablation, c.strength, c.hold, c.hold_value, c.hold_own_mlp, c.component, c.name, c.layer, c.head,
    n.neuron_layer, n.subset, cast(null as int) as expert,
    c.component_share,
    n.tokens, n.first_direct_effect, n.first_change, n.first_erases, n.first_erases_less,
    n.ten_erase, n.ten_erase_less, n.ten_share
from components c
left join neurons n using (ablation, strength, hold, hold_value, hold_own_mlp, component, name)
order by
    c.ablation, c.strength, c.hold, c.hold_value, c.hold_own_mlp, c.component, c.layer, c.head, c.name,
    n.neuron_layer, n.subset
