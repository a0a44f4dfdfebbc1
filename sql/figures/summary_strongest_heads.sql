-- Question: which heads are repaired most?
-- Grain:    a head of $ablation, on its top tokens; the three with most self-repair
--
-- layer, head, self_repair, self_repair_error: as in `head_summary`
select layer, head, self_repair, self_repair_error
from head_summary
where component = 'head' and hold = 'none' and strength = 1 and ablation = $ablation and subset = 'top'
order by self_repair desc
limit 3
