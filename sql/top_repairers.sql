-- Question: which later components repair each ablated one most?
-- Grain:    ablated component (`ablation` to `head`) × rank: up to five repairers whose mean change is above 0
--
-- ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head: as in `ablations`
-- rank: place among its repairers, the strongest first, from 1
-- repairer, repairer_name, repairer_layer, repairer_head: what repairs: `head` or `mlp`
-- tokens: top tokens of the ablated component, which the means are over
-- mean_change: mean change of the repairer's direct effect [logits]
-- standard_error: of mean_change, clustered by prompt [logits]
-- share: mean_change over the sum of |mean_change| of all later components
with sized as (
    select *, sum(abs(cast(mean_change as double))) over w as size
    from repair_graph
    where subset = 'top'
    window w as (partition by ablation, strength, hold, hold_value, hold_own_mlp, component, name)
),
-- Of those that repair only: there are fewer to sort.
ranked as (
    select
        *,
        cast(row_number() over (
            partition by ablation, strength, hold, hold_value, hold_own_mlp, component, name
            order by mean_change desc, repairer_layer, repairer, repairer_head, repairer_name
        ) as int) as rank
    from sized
    where mean_change > 0
)
select
    ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head, rank,
    repairer, repairer_name, repairer_layer, repairer_head,
    tokens, mean_change, standard_error,
    mean_change / size as share
from ranked
where rank <= 5
order by ablation, strength, hold, hold_value, hold_own_mlp, component, layer, head, name, rank
