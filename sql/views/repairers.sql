-- Question: which later component repairs an ablated one, on which token?
-- Grain:    a row of `component_repairs`
-- Example:  select name, repairer_name, count(*) as tokens, avg(change) as change from repairers where rank = 0
--           group by name, repairer_name order by tokens desc limit 10
--
-- name: as in `heads`
-- repairer_name: the same of the component that changed
-- ablation, hold, component, layer, head, prompt, position: as in `ablations`
-- rank, repairer, repairer_layer, repairer_head, direct_effect, change: as in `component_repairs`
select
    case component
        when 'head' then concat('L', layer, 'H', head)
        when 'mlp' then concat('MLP', layer)
        when 'attention' then concat('ATT', layer)
        when 'block' then concat('BLOCK', layer)
    end as name,
    case repairer
        when 'head' then concat('L', repairer_layer, 'H', repairer_head)
        when 'mlp' then concat('MLP', repairer_layer)
    end as repairer_name,
    ablation, hold, component, layer, head, prompt, position,
    rank, repairer, repairer_layer, repairer_head,
    direct_effect, change
from component_repairs
