-- Question: which later component makes up for which ablated one?
-- Grain:    an edge of `repair_graph` on top tokens; the 200 largest changes
--
-- ablated, repairer: `L9H6` for head 6 of layer 9, `L9 mlp` for a layer's whole MLP
-- ablation, hold, tokens, mean_change, standard_error: as in `repair_graph`
select
    case ablated when 'head' then concat('L', layer, 'H', head) else concat('L', layer, ' ', ablated) end as ablated,
    case component
        when 'head' then concat('L', repairer_layer, 'H', repairer_head)
        else concat('L', repairer_layer, ' ', component)
    end as repairer,
    ablation, hold, tokens, mean_change, standard_error
from repair_graph
where subset = 'top'
order by abs(mean_change) desc
limit 200
