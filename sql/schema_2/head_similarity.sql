-- Question: what is `head_similarity` of a run of schema 2 in the present schema?
-- Grain:    as in `head_similarity`
select *, component_name('head', layer, head) as name, component_name('head', other_layer, other_head) as other_name
from head_similarity
