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
    select ablation, hold, component, layer, head, prompt, position, min(rank) as rank
    from component_repairs
    where change > 0
    group by ablation, hold, component, layer, head, prompt, position
),
counts as (
    select
        c.ablation, c.hold, c.component, c.layer, c.head, c.repairer, c.repairer_layer, c.repairer_head,
        count(*) as tokens
    from component_repairs c
    join strongest s
        on c.ablation = s.ablation and c.hold = s.hold and c.component = s.component and c.layer = s.layer
        and coalesce(c.head, 65535) = coalesce(s.head, 65535) and c.prompt = s.prompt and c.position = s.position
        and c.rank = s.rank
    group by c.ablation, c.hold, c.component, c.layer, c.head, c.repairer, c.repairer_layer, c.repairer_head
),
shares as (
    select
        *,
        cast(tokens as double) / sum(tokens) over (partition by ablation, hold, component, layer, head) as share,
        row_number() over (
            partition by ablation, hold, component, layer, head
            order by tokens desc, repairer_layer, repairer, repairer_head
        ) as rank
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
group by ablation, hold, component, layer, head
order by ablation, hold, component, layer, head
