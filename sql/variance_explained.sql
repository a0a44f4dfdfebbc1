-- Question: how much of the variance of self-repair from token to token does a component's direct effect explain?
-- Grain:    ablated component (`ablation` to `head`), over all its tokens
--
-- ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head: as in `ablations`
-- tokens: tokens
-- correlation: of self_repair and direct_effect
-- r_squared: share of self_repair's variance that its line on direct_effect explains
-- slope, intercept: of that line; the intercept [logits]
-- logit_change_r_squared, logit_change_slope: the same for logit_change on direct_effect; without self-repair, zero
--     ablation has a slope of -1
select
    ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head,
    count(*) as tokens,
    corr(cast(self_repair as double), cast(direct_effect as double)) as correlation,
    regr_r2(cast(self_repair as double), cast(direct_effect as double)) as r_squared,
    regr_slope(cast(self_repair as double), cast(direct_effect as double)) as slope,
    regr_intercept(cast(self_repair as double), cast(direct_effect as double)) as intercept,
    regr_r2(cast(logit_change as double), cast(direct_effect as double)) as logit_change_r_squared,
    regr_slope(cast(logit_change as double), cast(direct_effect as double)) as logit_change_slope
from ablations
group by ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head
order by ablation, strength, hold, hold_value, hold_own_mlp, component, layer, head, name
