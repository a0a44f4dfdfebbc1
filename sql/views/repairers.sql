-- Question: which later component repairs an ablated one, on which token?
-- Grain:    a row of `component_repairs`
-- Example:  select name, repairer_name, count(*) as tokens, avg(change) as change from repairers where rank = 1
--           group by name, repairer_name order by tokens desc limit 10
--
-- name, ablation, strength, hold, hold_value, hold_own_mlp, component, layer, head, prompt, position: as in `ablations`
-- rank, repairer, repairer_name, repairer_layer, repairer_head, direct_effect, change: as in `component_repairs`
select
    name, repairer_name,
    ablation, strength, hold, hold_value, hold_own_mlp, component, layer, head, prompt, position,
    rank, repairer, repairer_layer, repairer_head,
    direct_effect, change
from component_repairs
