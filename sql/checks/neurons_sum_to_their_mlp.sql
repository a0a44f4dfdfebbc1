-- What the neurons of an MLP change, added up, is what the MLP changes.
with neurons as (
    select
        ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head, neuron_layer, subset,
        avg(cast(total_change as double)) as total,
        avg(cast(absolute_change as double)) as size
    from neuron_totals
    group by ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head, neuron_layer, subset
)
select
    n.ablation, n.strength, n.hold, n.hold_value, n.hold_own_mlp, n.component, n.name, n.layer, n.head,
    n.neuron_layer, n.total, g.mean_change, n.size
from neurons n
join repair_graph g
    using (ablation, strength, hold, hold_value, hold_own_mlp, component, name, subset)
where g.repairer = 'mlp' and g.repairer_layer = n.neuron_layer and abs(n.total - g.mean_change)
        > 1e-4 * (select coalesce(max(tolerance), 1) from rounding) * greatest(1, n.size)
