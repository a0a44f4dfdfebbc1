-- Question: which share of the direct effect does each cause make up for?
-- Grain:    layer × subset of $ablation
--
-- layer, subset: as in `layer_summary`
-- repair_attention, repair_mlp, repair_norm, repair_write_norm: mean over the layer's heads of the mean over tokens of
--     the cause over direct effect, clipped to [0, 1]
select
    layer, subset,
    avg(attention_clipped) as repair_attention,
    avg(mlp_clipped) as repair_mlp,
    avg(norm_clipped) as repair_norm,
    avg(write_norm_clipped) as repair_write_norm
from head_summary
where component = 'head' and hold = 'none' and strength = 1 and ablation = $ablation
group by layer, subset
order by layer
