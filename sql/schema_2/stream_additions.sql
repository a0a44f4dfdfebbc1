-- Question: what is `stream_additions` of a run of schema 2 in the present schema? A Float32 multiple 0.1 becomes the Float64 0.1.
-- Grain:    as in `stream_additions`
select
    * replace (cast(cast(multiple as text) as double) as multiple),
    component_name('head', layer, head) as name,
    cast(0 as real) as response_write_norm
from stream_additions
