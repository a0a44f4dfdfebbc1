-- What the neurons of an MLP change, added up, is what the MLP changes.
with neurons as (
    select
        ablation, hold, component, layer, head, neuron_layer,
        avg(cast(total_change as double)) as total,
        avg(cast(absolute_change as double)) as size
    from neuron_totals
    group by ablation, hold, component, layer, head, neuron_layer
)
select n.ablation, n.hold, n.component, n.layer, n.head, n.neuron_layer, n.total, g.mean_change, n.size
from neurons n
join repair_graph g
    on n.ablation = g.ablation and n.hold = g.hold and n.component = g.ablated and n.layer = g.layer
    and (n.head is not distinct from g.head) and n.neuron_layer = g.repairer_layer
where g.subset = 'top' and g.component = 'mlp' and abs(n.total - g.mean_change)
        > 1e-4 * (select coalesce(max(tolerance), 1) from rounding) * greatest(1, n.size)
