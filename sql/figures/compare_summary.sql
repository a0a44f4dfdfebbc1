-- Question: how much self-repair is there, and through what?
-- Grain:    one row, the mean over all heads of $ablation on their top tokens
--
-- heads: ablated heads
-- direct_effect, logit_change, self_repair, repair_attention, repair_mlp, repair_norm, repair_write_norm: as in
--     `head_summary`
-- fraction: self_repair / direct_effect of the means
-- norm_share: mean over tokens of repair_norm / direct_effect, clipped to [0, 1]
select
    count(*) as heads,
    avg(direct_effect) as direct_effect,
    avg(logit_change) as logit_change,
    avg(self_repair) as self_repair,
    avg(self_repair) / avg(direct_effect) as fraction,
    avg(repair_attention) as repair_attention,
    avg(repair_mlp) as repair_mlp,
    avg(repair_norm) as repair_norm,
    avg(repair_write_norm) as repair_write_norm,
    avg(norm_clipped) as norm_share
from head_summary
where component = 'head' and hold = 'none' and strength = 1 and ablation = $ablation and subset = 'top'
