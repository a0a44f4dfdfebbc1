-- Question: in which layers is there self-repair, and through what?
-- Grain:    ablation × strength × hold × hold_value × hold_own_mlp × component × layer × subset
--
-- ablation, strength, hold, hold_value, hold_own_mlp, component, layer: as in `ablations`
-- subset: `all` tokens, or each head's `top` tokens
-- heads: ablated heads of the layer
-- relative_depth: layer / (layers of the model − 1)
-- direct_effect, logit_change, self_repair, repair_attention, repair_mlp, repair_norm, repair_write_norm,
--     repair_by_erasers: means over the layer's heads of their means in `head_summary` [logits]
-- fraction_clipped, fraction_unclipped: means over the layer's heads
-- fraction_of_means: self_repair / direct_effect of this row
with depth as (
    select layers from model
)
select
    h.ablation, h.strength, h.hold, h.hold_value, h.hold_own_mlp, h.component, h.layer, h.subset,
    count(*) as heads,
    cast(h.layer as double) / greatest(1, max(d.layers) - 1) as relative_depth,
    avg(h.direct_effect) as direct_effect,
    avg(h.logit_change) as logit_change,
    avg(h.self_repair) as self_repair,
    avg(h.repair_attention) as repair_attention,
    avg(h.repair_mlp) as repair_mlp,
    avg(h.repair_norm) as repair_norm,
    avg(h.repair_write_norm) as repair_write_norm,
    avg(h.repair_by_erasers) as repair_by_erasers,
    avg(h.fraction_clipped) as fraction_clipped,
    avg(h.fraction_unclipped) as fraction_unclipped,
    avg(h.self_repair) / nullif(avg(h.direct_effect), 0) as fraction_of_means
from head_summary h
cross join depth d
group by h.ablation, h.strength, h.hold, h.hold_value, h.hold_own_mlp, h.component, h.layer, h.subset
order by h.ablation, h.strength, h.hold, h.hold_value, h.hold_own_mlp, h.component, h.layer, h.subset
