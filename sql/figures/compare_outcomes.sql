-- Question: how often is a loss not, partly or over-repaired?
-- Grain:    one row, over all heads of $ablation and their tokens that lose more than 0.05 logits of direct effect
--
-- not_repaired, partly_repaired, over_repaired: tokens as in `repair_outcomes` [%]
select
    100.0 * sum(tokens * not_repaired) / sum(tokens) as not_repaired,
    100.0 * sum(tokens * partly_repaired) / sum(tokens) as partly_repaired,
    100.0 * sum(tokens * over_repaired) / sum(tokens) as over_repaired
from repair_outcomes
where component = 'head' and hold = 'none' and strength = 1 and ablation = $ablation
