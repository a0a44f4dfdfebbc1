-- Question: at what depth are which heads repaired?
-- Grain:    an ablated head of $ablation, on its top tokens
--
-- relative_depth: layer / (layers of the model − 1)
-- self_repair, fraction_of_means: as in `head_summary`
select
    cast(h.layer as double) / greatest(1, m.layers - 1) as relative_depth,
    h.self_repair, h.fraction_of_means
from head_summary h
cross join model m
where h.component = 'head' and h.hold = 'none' and h.strength = 1 and h.ablation = $ablation and h.subset = 'top'
order by h.layer, h.head
