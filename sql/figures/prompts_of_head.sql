-- Question: how does the self-repair of one head differ between prompts?
-- Grain:    a prompt, over all tokens of head $head of layer $layer
--
-- prompt: as in `ablations`
-- self_repair: mean self-repair [logits]
select prompt, avg(self_repair) as self_repair
from ablations
where component = 'head' and hold = 'none' and strength = 1 and ablation = $ablation and layer = $layer and head = $head
group by prompt
order by prompt
