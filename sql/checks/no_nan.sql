-- Every measured number is finite.
select 'ablations' as table_name, layer, head, prompt, position
from ablations
where not (abs(logit_change + direct_effect + ablated_direct_effect + self_repair + repair_attention + repair_mlp
    + repair_norm + repair_by_erasers + norm_scale + ablated_norm_scale + ablated_residual_norm) < 1e30)
union all
select 'clean', null, null, prompt, position
from clean
where not (abs(logit + log_prob + norm_scale + residual_norm) < 1e30)
union all
select 'direct_effects', layer, head, prompt, position
from direct_effects
where not (abs(direct_effect) < 1e30)
