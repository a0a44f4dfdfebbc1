-- Question: which later components repair each ablated one most?
-- Grain:    ablation × hold × component × layer × head × rank: up to five repairers whose mean change is above 0
--
-- ablation, hold, component, layer, head: as in `ablations`
-- rank: place among its repairers, the strongest first, from 1
-- repairer, repairer_layer, repairer_head: what repairs: `head` or `mlp`
-- tokens: top tokens of the ablated component, which the means are over
-- mean_change: mean change of the repairer's direct effect [logits]
-- standard_error: of mean_change, clustered by prompt [logits]
-- share: mean_change over the sum of |mean_change| of all later components
with sized as (
    select *, sum(abs(cast(mean_change as double))) over (partition by ablation, hold, ablated, layer, head) as size
    from repair_graph
    where subset = 'top'
),
-- Of those that repair only: there are fewer to sort.
ranked as (
    select
        *,
        row_number() over (
            partition by ablation, hold, ablated, layer, head
            order by mean_change desc, repairer_layer, component, repairer_head
        ) as rank
    from sized
    where mean_change > 0
)
select
    ablation, hold, ablated as component, layer, head, rank,
    component as repairer, repairer_layer, repairer_head,
    tokens, mean_change, standard_error,
    mean_change / size as share
from ranked
where rank <= 5
order by ablation, hold, ablated, layer, head, rank
