-- Question: which ablated heads do later heads react to most?
-- Grain:    an ablated head of $ablation, the strongest reaction first
--
-- layer, head: as in `ablations`
-- change: summed absolute change of the later heads' direct effects [logits]
select layer, head, sum(abs(mean_change)) as change
from repair_graph
where component = 'head' and hold = 'none' and strength = 1 and ablation = $ablation and repairer = 'head'
group by layer, head
order by change desc, layer, head
