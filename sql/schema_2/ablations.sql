-- Question: what is `ablations` of a run of schema 2 in the present schema? No family that writes through a norm was
--           supported.
-- Grain:    as in `ablations`
select *, 1.0 as strength, 'clean' as hold_value, true as hold_own_mlp,
    component_name(component, layer, head) as name,
    0.0 as repair_write_norm, 0.0 as repair_write_norm_own
from ablations
