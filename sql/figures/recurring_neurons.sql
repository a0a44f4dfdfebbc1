-- Question: which neurons return among the ten that repair most?
-- Grain:    a neuron of the last measured MLP, over the heads of $ablation and their top tokens; at most 20
--
-- neuron_layer: block of the MLP
-- neuron: which neuron of it; in a mixture of experts, its expert, a colon, and which of the expert's
-- share: of the heads' top tokens, on how many it is among the ten [%]
-- change: mean change of its direct effect on those [logits]
with chosen as (
    select *
    from neuron_repairs
    where component = 'head' and hold = 'none' and strength = 1 and ablation = $ablation and rank <= 10
        and neuron_layer = (select max(neuron_layer) from neuron_repairs)
),
tokens as (
    select count(*) as tokens
    from (select distinct layer, head, prompt, position from chosen)
)
select
    neuron_layer,
    case when expert is null then '' else concat(expert, ':') end || neuron as neuron,
    100.0 * count(*) / max(tokens) as share, avg(change) as change
from chosen
cross join tokens
group by neuron_layer, expert, neuron
order by share desc, expert, neuron
limit 20
