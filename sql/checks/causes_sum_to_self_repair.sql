-- Self-repair is what other heads, MLPs, the final norm and norms on what parts write changed, and nothing else.
select
    ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head, prompt, position,
    self_repair, repair_attention, repair_mlp, repair_norm, repair_write_norm
from ablations
where abs(self_repair - (repair_attention + repair_mlp + repair_norm + repair_write_norm))
    > 1e-3 * (select coalesce(max(tolerance), 1) from rounding)
        * greatest(1, abs(repair_attention) + abs(repair_mlp) + abs(repair_norm) + abs(repair_write_norm))
