-- Question: what is `top_tokens` of a run of schema 2 in the present schema? Ranks counted from 0.
-- Grain:    as in `top_tokens`
select * replace (rank + 1 as rank), component_name(component, layer, head) as name
from top_tokens
