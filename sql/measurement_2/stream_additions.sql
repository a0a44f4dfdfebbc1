-- Question: what is `stream_additions` of a run of measurement version 2 with the present columns? No family had norms on
--           what parts write.
-- Grain:    as in `stream_additions`
select *, cast(0 as real) as response_write_norm
from stream_additions
