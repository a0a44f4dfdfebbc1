-- Question: how does self-repair differ between prompts?
-- Grain:    a prompt, over all tokens and all heads that $ablation replaced
--
-- prompt: as in `ablations`
-- self_repair: mean self-repair [logits]
select prompt, avg(self_repair) as self_repair
from ablations
where component = 'head' and hold = 'none' and strength = 1 and ablation = $ablation
group by prompt
order by prompt
