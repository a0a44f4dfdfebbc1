-- Question: how much of the loss is repaired, by the head's direct effect?
-- Grain:    a tenth, by direct effect, of the tokens on which $ablation takes more than 0.05 logits of direct effect
--           away, all heads together
--
-- decile: which tenth, 0 of the lowest direct effect
-- tokens: tokens in it
-- direct_effect: mean direct effect [logits]
-- not_repaired: tokens with self_repair / that loss ≤ 0 [%]
-- partly_repaired: tokens between 0 and 1 [%]
-- over_repaired: tokens above 1 [%]
with lost as (
    select direct_effect, cast(self_repair as double) / (direct_effect - ablated_direct_effect) as repaired
    from ablations
    where component = 'head' and hold = 'none' and strength = 1 and ablation = $ablation
        and direct_effect - ablated_direct_effect > 0.05
),
edges as (
    select
        approx_percentile_cont(0.1) within group (order by direct_effect) as edge_1,
        approx_percentile_cont(0.2) within group (order by direct_effect) as edge_2,
        approx_percentile_cont(0.3) within group (order by direct_effect) as edge_3,
        approx_percentile_cont(0.4) within group (order by direct_effect) as edge_4,
        approx_percentile_cont(0.5) within group (order by direct_effect) as edge_5,
        approx_percentile_cont(0.6) within group (order by direct_effect) as edge_6,
        approx_percentile_cont(0.7) within group (order by direct_effect) as edge_7,
        approx_percentile_cont(0.8) within group (order by direct_effect) as edge_8,
        approx_percentile_cont(0.9) within group (order by direct_effect) as edge_9
    from lost
),
deciles as (
    select
        case when direct_effect > edge_1 then 1 else 0 end
            + case when direct_effect > edge_2 then 1 else 0 end
            + case when direct_effect > edge_3 then 1 else 0 end
            + case when direct_effect > edge_4 then 1 else 0 end
            + case when direct_effect > edge_5 then 1 else 0 end
            + case when direct_effect > edge_6 then 1 else 0 end
            + case when direct_effect > edge_7 then 1 else 0 end
            + case when direct_effect > edge_8 then 1 else 0 end
            + case when direct_effect > edge_9 then 1 else 0 end
            as decile,
        direct_effect, repaired
    from lost
    cross join edges
)
select
    decile,
    count(*) as tokens,
    avg(direct_effect) as direct_effect,
    avg(case when repaired <= 0 then 100.0 else 0.0 end) as not_repaired,
    avg(case when repaired > 0 and repaired <= 1 then 100.0 else 0.0 end) as partly_repaired,
    avg(case when repaired > 1 then 100.0 else 0.0 end) as over_repaired
from deciles
group by decile
order by decile
