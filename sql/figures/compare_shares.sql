-- Question: which share of the direct effect does each cause make up for?
-- Grain:    one row, the mean over all heads, for $ablation, on their top tokens
--
-- repair_attention, repair_mlp, repair_norm, repair_write_norm: mean over tokens of the cause over direct effect,
--     clipped to [0, 1]
select
    avg(h.attention_clipped) as repair_attention,
    avg(h.mlp_clipped) as repair_mlp,
    avg(h.norm_clipped) as repair_norm,
    avg(h.write_norm_clipped) as repair_write_norm
from head_summary h
where h.component = 'head' and h.hold = 'none' and h.strength = 1 and h.ablation = $ablation and h.subset = 'top'
