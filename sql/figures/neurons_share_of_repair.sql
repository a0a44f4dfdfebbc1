-- Question: which share of self-repair comes from the last MLP?
-- Grain:    a bin of 7.5 %, over the heads of $ablation and those of their top tokens with self-repair above 0.05
--
-- bin: which bin from -100 % on holds the MLP's change / self_repair
-- rows: tokens in it, counted per head
with repaired as (
    select layer, head, prompt, position, self_repair
    from ablations
    where component = 'head' and hold = 'none' and strength = 1 and ablation = $ablation and self_repair > 0.05
)
select floor((100 * cast(n.total_change as double) / a.self_repair + 100) / 7.5) as bin, count(*) as rows
from neuron_totals n
join repaired a on n.layer = a.layer and n.head = a.head and n.prompt = a.prompt and n.position = a.position
where n.component = 'head' and n.hold = 'none' and n.strength = 1 and n.ablation = $ablation
    and n.neuron_layer = (select max(neuron_layer) from neuron_totals)
group by 1
