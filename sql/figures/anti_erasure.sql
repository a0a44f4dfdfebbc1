-- Question: did the neuron that repairs most push against the token before, and does it push less now?
-- Grain:    a head of $ablation and one of its top tokens; at most 2,500, spread evenly
--
-- layer, head: as in `ablations`
-- neuron_layer: block of the last measured MLP
-- neuron: the one of its neurons that repairs most
-- before, after: its direct effect, clean and with the head ablated [logits]
-- mlp: clean direct effect of its whole MLP [logits]
select
    n.layer, n.head, n.neuron_layer, n.neuron,
    n.direct_effect as before,
    n.direct_effect + n.change as after,
    d.direct_effect as mlp
from neuron_repairs n
join direct_effects d
    on d.component = 'mlp' and d.layer = n.neuron_layer and d.prompt = n.prompt and d.position = n.position
where n.component = 'head' and n.hold = 'none' and n.strength = 1 and n.ablation = $ablation and n.rank = 1
    and n.neuron_layer = (select max(neuron_layer) from neuron_repairs)
order by
    (cast(n.prompt as bigint) * 7919 + n.position * 104729 + n.layer * 31 + n.head * 17) % 10007,
    n.layer, n.head, n.prompt, n.position
limit 2500
