-- Question: how much of what the last MLP's neurons repair comes from the five of them that repair most?
-- Grain:    a bin of 2.5 %, over the heads of $ablation and those of their top tokens of which five neurons were kept
--
-- bin: which bin holds the share of those five (of them, the ones that rose) in the summed positive change, from 0; 39
--     is the last
-- rows: tokens in it, counted per head
with first_five as (
    select layer, head, prompt, position, sum(greatest(cast(change as double), 0)) as change
    from neuron_repairs
    where component = 'head' and hold = 'none' and strength = 1 and ablation = $ablation and rank <= 5
        and neuron_layer = (select max(neuron_layer) from neuron_totals)
    group by layer, head, prompt, position
    having max(rank) = 5
),
totals as (
    select layer, head, prompt, position, positive_change
    from neuron_totals
    where component = 'head' and hold = 'none' and strength = 1 and ablation = $ablation and positive_change > 0
        and neuron_layer = (select max(neuron_layer) from neuron_totals)
)
select least(floor(100 * f.change / t.positive_change / 2.5), 39) as bin, count(*) as rows
from first_five f
join totals t on f.layer = t.layer and f.head = t.head and f.prompt = t.prompt and f.position = t.position
group by 1
