-- Question: what is `direct_effects` of a run of schema 2 in the present schema?
-- Grain:    as in `direct_effects`
select *, component_name(component, layer, head) as name
from direct_effects
