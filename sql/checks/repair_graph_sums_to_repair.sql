-- What all later components change, added up, is repair_attention + repair_mlp.
with changes as (
    select
        ablation, hold, ablated, layer, head, subset,
        max(tokens) as tokens,
        sum(cast(mean_change as double)) as total,
        sum(abs(cast(mean_change as double))) as size
    from repair_graph
    group by ablation, hold, ablated, layer, head, subset
)
select
    h.ablation, h.hold, h.component, h.layer, h.head, h.subset,
    h.tokens, c.tokens as graph_tokens, h.repair_attention + h.repair_mlp as repair, c.total, c.size
-- All columns are compared as the one that may be null, as in iterative_repair.sql.
from head_summary h
left join changes c
    on (h.ablation is not distinct from c.ablation)
    and (h.hold is not distinct from c.hold)
    and (h.component is not distinct from c.ablated)
    and (h.layer is not distinct from c.layer)
    and (h.head is not distinct from c.head)
    and (h.subset is not distinct from c.subset)
where h.tokens <> coalesce(c.tokens, h.tokens)
    or abs(h.repair_attention + h.repair_mlp - coalesce(c.total, 0)) > 1e-4 * greatest(1, coalesce(c.size, 0))
