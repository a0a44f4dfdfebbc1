-- Question: how is self-repair spread over tokens?
-- Grain:    layer × quantile of $ablation
--
-- layer: block of the ablated heads
-- quantile: share of the tokens below self_repair
-- self_repair: quantile over the tokens of all ablated heads of the layer [logits]
select layer, quantile, self_repair
from repair_quantiles
where ablation = $ablation and hold = 'none' and strength = 1
order by layer, quantile
