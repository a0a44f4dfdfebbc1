-- Question: is a component repaired by one backup, or by different ones on different tokens?
-- Grain:    ablated component (`ablation` to `head`), over its top tokens on which any later component repairs
--
-- ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head: as in `ablations`
-- tokens: those tokens
-- repairers: how many components are the strongest repairer of at least one of them
-- repairer, repairer_name, repairer_layer, repairer_head: the most frequent strongest repairer (ties: the first in the model)
-- share: the share of tokens on which it is
-- effective_repairers: exp of the entropy of the strongest repairers: the number of equally frequent repairers with the same diversity
with strongest as (
    -- A token's repairers are ranked by the size of their change.
    select
        ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head,
        first_value(repairer order by rank) as repairer,
        first_value(repairer_name order by rank) as repairer_name,
        first_value(repairer_layer order by rank) as repairer_layer,
        first_value(repairer_head order by rank) as repairer_head
    from component_repairs
    where change > 0
    group by ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head, prompt, position
),
counts as (
    select
        ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head,
        repairer, repairer_name, repairer_layer, repairer_head,
        count(*) as tokens
    from strongest
    group by
        ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head,
        repairer, repairer_name, repairer_layer, repairer_head
),
shares as (
    select
        *,
        cast(tokens as double) / sum(tokens) over (partition by ablation, strength, hold, hold_value, hold_own_mlp, component, name)
            as share,
        -- In the model, a block's heads come before its MLP.
        row_number() over (
            partition by ablation, strength, hold, hold_value, hold_own_mlp, component, name
            order by tokens desc, repairer_layer, repairer, repairer_head, repairer_name
        ) as rank
    from counts
)
select
    ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head,
    sum(tokens) as tokens,
    count(*) as repairers,
    max(case when rank = 1 then repairer end) as repairer,
    max(case when rank = 1 then repairer_name end) as repairer_name,
    max(case when rank = 1 then repairer_layer end) as repairer_layer,
    max(case when rank = 1 then repairer_head end) as repairer_head,
    max(share) as share,
    exp(-sum(share * ln(share))) as effective_repairers
from shares
group by ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head
order by ablation, strength, hold, hold_value, hold_own_mlp, component, layer, head, name
