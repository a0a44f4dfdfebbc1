-- Question: how far are this run's heads from what the authors published?
-- Grain:    metric × head, for $ablation and $subset
--
-- metric: the authors' name of what is compared
-- layer, head: the ablated head
-- paper, ours: the authors' value, and this run's
select metric, layer, head, paper, ours
from paper_comparison
where ablation = $ablation and subset = $subset
