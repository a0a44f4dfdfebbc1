-- Question: what is `component_repairs` of a run of schema 2 in the present schema? Ranks counted from 0.
-- Grain:    as in `component_repairs`
select * replace (rank + 1 as rank),
    1.0 as strength, 'clean' as hold_value, true as hold_own_mlp,
    component_name(component, layer, head) as name,
    component_name(repairer, repairer_layer, repairer_head) as repairer_name
from component_repairs
