-- Question: how does the logit change on single tokens?
-- Grain:    one in $every tokens, by a rule that follows neither positions nor prompts, of head $head of layer $layer
--
-- direct_effect, logit_change: as in `ablations`
select direct_effect, logit_change
from ablations
where component = 'head' and hold = 'none' and strength = 1 and ablation = $ablation and layer = $layer and head = $head
    and (cast(prompt as bigint) * 7919 + position * 104729) % $every = 0
