-- Question: what is `distributions` of a run of schema 2, which had these columns in `ablations`?
-- Grain:    as in `distributions`
select ablation, 1.0 as strength, hold, 'clean' as hold_value, true as hold_own_mlp,
    component, component_name(component, layer, head) as name, layer, head, prompt, position,
    ablated_log_prob, kl_divergence
from ablations
