-- Question: do this run's heads rank as in what the authors published?
-- Grain:    a metric, for $ablation and $subset
--
-- metric: the authors' name of what is compared
-- rank_correlation: Spearman's correlation over the heads
-- median_relative_difference: median over heads of |ours - paper| / |paper|
select metric, rank_correlation, median_relative_difference
from paper_agreement
where ablation = $ablation and subset = $subset
