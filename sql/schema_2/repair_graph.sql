-- Question: what is `repair_graph` of a run of schema 2 in the present schema? There, `component` was the repairer.
-- Grain:    as in `repair_graph`
select ablation, 1.0 as strength, hold, 'clean' as hold_value, true as hold_own_mlp,
    ablated as component, component_name(ablated, layer, head) as name, layer, head,
    subset,
    component as repairer, component_name(component, repairer_layer, repairer_head) as repairer_name,
    repairer_layer, repairer_head,
    tokens, mean_change, standard_error
from repair_graph
