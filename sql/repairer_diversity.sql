-- Question: is a component repaired by one backup, or by different ones on different tokens?
-- Grain:    ablation × hold × component × layer × head, over its top tokens on which any later component repairs
--
-- ablation, hold, component, layer, head: as in `ablations`
-- tokens: those tokens
-- repairers: how many components are the strongest repairer of at least one of them
-- repairer, repairer_layer, repairer_head: the one that is so most often (of equals, the first in the model)
-- share: the share of tokens on which it is
-- effective_repairers: exp of the entropy of the strongest repairers: as many equally frequent ones would be as diverse
with strongest as (
    select
        ablation, hold, component, layer, head,
        -- The strongest of a token's repairers has the least rank. Its place in the model stands behind the rank in one
        -- number, 16 bits for each part: so the minimum finds both, and the rows need not be joined with it.
        min(rank * 4294967296 + repairer_layer * 65536 + coalesce(repairer_head, 65535)) % 4294967296 as place
    from component_repairs
    where change > 0
    group by ablation, hold, component, layer, head, prompt, position
),
-- What stands at a place: its block, then its head; an MLP is after its block's heads.
names as (
    select distinct
        component as repairer, repairer_layer, repairer_head,
        repairer_layer * 65536 + coalesce(repairer_head, 65535) as place
    from repair_graph
),
counts as (
    select ablation, hold, component, layer, head, place, count(*) as tokens
    from strongest
    group by ablation, hold, component, layer, head, place
),
shares as (
    select
        *,
        cast(tokens as double) / sum(tokens) over (partition by ablation, hold, component, layer, head) as share,
        row_number() over (partition by ablation, hold, component, layer, head order by tokens desc, place) as rank
    from counts
)
select
    ablation, hold, component, layer, head,
    sum(tokens) as tokens,
    count(*) as repairers,
    max(case when rank = 1 then repairer end) as repairer,
    max(case when rank = 1 then repairer_layer end) as repairer_layer,
    max(case when rank = 1 then repairer_head end) as repairer_head,
    max(share) as share,
    exp(-sum(share * ln(share))) as effective_repairers
from shares
left join names using (place)
group by ablation, hold, component, layer, head
order by ablation, hold, component, layer, head
