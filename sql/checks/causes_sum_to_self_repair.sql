-- Self-repair is what other heads, MLPs and the final norm changed, and nothing else.
select
    ablation, hold, component, layer, head, prompt, position,
    self_repair, repair_attention, repair_mlp, repair_norm
from ablations
where abs(self_repair - (repair_attention + repair_mlp + repair_norm))
    > 1e-3 * (select coalesce(max(tolerance), 1) from rounding)
        * greatest(1, abs(repair_attention) + abs(repair_mlp) + abs(repair_norm))
