-- Question: how sure is each layer's mean self-repair?
-- Grain:    a layer of $ablation, on its heads' top tokens
--
-- layer: block of the ablated heads
-- low, high: ends of the 95 % interval of the layer's mean, by a bootstrap over prompts [logits]
select layer, low, high
from uncertainty
where component = 'head' and hold = 'none' and strength = 1 and ablation = $ablation and subset = 'top'
    and measure = 'self_repair' and layer is not null and name is null
order by layer
