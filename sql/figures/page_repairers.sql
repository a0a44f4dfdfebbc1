-- Question: which later component makes up for which ablated one?
-- Grain:    an edge of `repair_graph` on top tokens; the 200 largest changes
--
-- name, repairer_name, ablation, strength, hold, tokens, mean_change, standard_error: as in `repair_graph`
select
    name, repairer_name, ablation, strength, hold, tokens, mean_change, standard_error
from repair_graph
where subset = 'top'
order by abs(mean_change) desc
limit 200
