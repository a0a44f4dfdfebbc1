-- Question: what is `neuron_curves` of a run of schema 2 in the present schema? It had curves of heads without a hold
--           only. Ranks counted from 0.
-- Grain:    as in `neuron_curves`
select * replace (rank + 1 as rank),
    1.0 as strength, 'none' as hold, 'clean' as hold_value, true as hold_own_mlp,
    'head' as component, component_name('head', layer, head) as name, 'top' as subset, null as expert
from neuron_curves
