-- Question: how much self-repair is there in the mean over heads, and through what?
-- Grain:    one row, the mean over all heads of $ablation on their top tokens
--
-- heads: ablated heads
-- direct_effect, ablated_direct_effect, logit_change, self_repair: as in `head_summary`
-- repair_attention, repair_mlp, repair_norm, repair_write_norm: as in `head_summary`
-- tokens, prompts: means over the heads
-- surely_repaired: heads whose self_repair is above two of its standard errors
select
    count(*) as heads,
    avg(direct_effect) as direct_effect,
    avg(ablated_direct_effect) as ablated_direct_effect,
    avg(logit_change) as logit_change,
    avg(tokens) as tokens,
    avg(prompts) as prompts,
    avg(self_repair) as self_repair,
    avg(repair_attention) as repair_attention,
    avg(repair_mlp) as repair_mlp,
    avg(repair_norm) as repair_norm,
    avg(repair_write_norm) as repair_write_norm,
    sum(case when self_repair > 2 * self_repair_error then 1 else 0 end) as surely_repaired
from head_summary
where component = 'head' and hold = 'none' and strength = 1 and ablation = $ablation and subset = 'top'
