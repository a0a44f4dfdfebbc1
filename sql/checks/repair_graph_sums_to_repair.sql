-- What all later components change, added up, is repair_attention + repair_mlp.
with changes as (
    select
        ablation, strength, hold, hold_value, hold_own_mlp, component, name, subset,
        max(tokens) as tokens,
        sum(cast(mean_change as double)) as total,
        sum(abs(cast(mean_change as double))) as size
    from repair_graph
    group by ablation, strength, hold, hold_value, hold_own_mlp, component, name, subset
)
select
    h.ablation, h.strength, h.hold, h.hold_value, h.hold_own_mlp, h.component, h.name, h.layer, h.head, h.subset,
    h.tokens, c.tokens as graph_tokens, h.repair_attention + h.repair_mlp as repair, c.total, c.size
from head_summary h
left join changes c using (ablation, strength, hold, hold_value, hold_own_mlp, component, name, subset)
where h.tokens <> coalesce(c.tokens, h.tokens)
    or abs(h.repair_attention + h.repair_mlp - coalesce(c.total, 0)) > 1e-4 * greatest(1, coalesce(c.size, 0))
