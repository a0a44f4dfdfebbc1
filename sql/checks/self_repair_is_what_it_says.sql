-- self_repair = logit_change − (ablated_direct_effect − direct_effect).
select
    ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head, prompt, position,
    self_repair, logit_change, direct_effect
from ablations
where abs(self_repair - (logit_change - (ablated_direct_effect - direct_effect)))
    > 1e-4 * greatest(1, abs(logit_change) + abs(ablated_direct_effect) + abs(direct_effect))
