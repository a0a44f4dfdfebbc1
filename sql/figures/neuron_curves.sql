-- Question: how many neurons of its last measured MLP repair a head, and how strongly?
-- Grain:    a rank of the neurons, for head $head of layer $layer and $ablation
--
-- neuron_layer, cumulative_share, above_50, above_10, above_5, above_2_5, above_1: as in `neuron_curves`
-- place: place among a token's neurons, the most repairing first, from 1
with of_head as (
    select *
    from neuron_curves
    where component = 'head' and hold = 'none' and strength = 1 and ablation = $ablation
        and layer = $layer and head = $head
)
select
    neuron_layer,
    rank as place,
    cumulative_share, above_50, above_10, above_5, above_2_5, above_1
from of_head
where neuron_layer = (select max(neuron_layer) from of_head)
order by rank
