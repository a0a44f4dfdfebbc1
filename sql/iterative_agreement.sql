-- Question: how alike are what later components do when a head is ablated and when its whole block is skipped?
-- Grain:    ablation × strength × head × subset × repairer (`head` or `mlp`)
--
-- ablation, strength, name, layer, head, subset, repairer: as in `iterative_repair`
-- components: later components of that sort
-- correlation: of head_change and block_change over them
-- slope: of block_change on head_change
-- same_sign: share of them that both change the same way
select
    ablation, strength, name, layer, head, subset, repairer,
    count(*) as components,
    corr(cast(head_change as double), cast(block_change as double)) as correlation,
    regr_slope(cast(block_change as double), cast(head_change as double)) as slope,
    avg(case when head_change * block_change > 0 then 1.0 else 0.0 end) as same_sign
from iterative_repair
group by ablation, strength, name, layer, head, subset, repairer
order by ablation, strength, layer, head, name, subset, repairer
