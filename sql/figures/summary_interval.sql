-- Question: how sure is the mean self-repair over all heads?
-- Grain:    one row, for $ablation and top tokens
--
-- low, high: ends of the 95 % interval, by a bootstrap over prompts [logits]
select low, high
from uncertainty
where component = 'head' and hold = 'none' and strength = 1 and ablation = $ablation and subset = 'top'
    and measure = 'self_repair' and layer is null and name is null
