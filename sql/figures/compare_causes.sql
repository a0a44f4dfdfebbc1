-- Question: what repairs?
-- Grain:    one row, the mean over all heads of $ablation on their top tokens
--
-- repair_attention, repair_mlp, repair_norm, repair_write_norm: as in `head_summary`
select
    avg(repair_attention) as repair_attention,
    avg(repair_mlp) as repair_mlp,
    avg(repair_norm) as repair_norm,
    avg(repair_write_norm) as repair_write_norm
from head_summary
where component = 'head' and hold = 'none' and strength = 1 and ablation = $ablation and subset = 'top'
