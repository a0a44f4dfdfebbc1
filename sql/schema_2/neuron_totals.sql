-- Question: what is `neuron_totals` of a run of schema 2 in the present schema?
-- Grain:    as in `neuron_totals`
select *, 1.0 as strength, 'clean' as hold_value, true as hold_own_mlp,
    component_name(component, layer, head) as name, 'top' as subset, null as expert
from neuron_totals
