-- Every measured number is finite.
select 'ablations' as table_name, name, layer, head, prompt, position
from ablations
where not (abs(logit_change + direct_effect + ablated_direct_effect + self_repair + repair_attention + repair_mlp
    + repair_norm + repair_write_norm + repair_write_norm_own + repair_by_erasers + norm_scale + ablated_norm_scale + ablated_residual_norm) < 1e30)
union all
select 'clean', null, null, null, prompt, position
from clean
where not (abs(logit + log_prob + norm_scale + residual_norm) < 1e30)
union all
select 'direct_effects', name, layer, head, prompt, position
from direct_effects
where not (abs(direct_effect) < 1e30)
union all
select 'distributions', name, layer, head, prompt, position
from distributions
where not (abs(ablated_log_prob + kl_divergence) < 1e30)
union all
select 'component_repairs', name, layer, head, prompt, position
from component_repairs
where not (abs(direct_effect + change) < 1e30)
union all
select 'neuron_repairs', name, layer, head, prompt, position
from neuron_repairs
where not (abs(direct_effect + change) < 1e30)
union all
select 'neuron_totals', name, layer, head, prompt, position
from neuron_totals
where not (abs(total_change + positive_change + absolute_change + top_percent_change) < 1e30)
union all
select 'neuron_curves', name, layer, head, null, null
from neuron_curves
where not (abs(cumulative_share + direct_effect) < 1e30)
union all
select 'repair_graph', name, layer, head, null, null
from repair_graph
where not (abs(mean_change + coalesce(standard_error, 0)) < 1e30)
union all
select 'self_additions', name, layer, head, prompt, position
from self_additions
where not (abs(direct_effect + new_direct_effect) < 1e30)
union all
select 'stream_additions', name, layer, head, prompt, position
from stream_additions
where not (abs(direct_effect + logit_change + response + response_attention + response_mlp + response_norm + response_write_norm
    + coalesce(own_change, 0)) < 1e30)
union all
select 'head_similarity', name, layer, head, null, null
from head_similarity
where not (abs(cosine + cosine_without_token) < 1e30)
