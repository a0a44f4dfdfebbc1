-- Question: how much of what the last MLP's neurons repair comes from the hundredth of them that repairs most?
-- Grain:    a bin of 2.5 %, over the heads of $ablation and their top tokens
--
-- bin: which bin holds the share of that hundredth in the summed positive change, from 0; 39 is the last
-- rows: tokens in it, counted per head
select
    least(floor(100 * cast(top_percent_change as double) / positive_change / 2.5), 39) as bin,
    count(*) as rows
from neuron_totals
where component = 'head' and hold = 'none' and strength = 1 and ablation = $ablation and positive_change > 0
    and neuron_layer = (select max(neuron_layer) from neuron_totals)
group by 1
