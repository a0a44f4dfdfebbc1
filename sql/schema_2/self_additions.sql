-- Question: what is `self_additions` of a run of schema 2 in the present schema? A Float32 multiple 0.1 becomes the Float64 0.1.
-- Grain:    as in `self_additions`
select * replace (cast(cast(multiple as text) as double) as multiple), component_name('head', layer, head) as name
from self_additions
