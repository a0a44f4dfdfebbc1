-- Question: what repairs, in each layer?
-- Grain:    a layer of $ablation, on its heads' top tokens
--
-- layer, repair_attention, repair_mlp, repair_norm, repair_write_norm, self_repair: as in `layer_summary`
select layer, repair_attention, repair_mlp, repair_norm, repair_write_norm, self_repair
from layer_summary
where component = 'head' and hold = 'none' and strength = 1 and ablation = $ablation and subset = 'top'
order by layer
