-- Question: do this run's heads rank as in the numbers that the paper's authors published, and how far off are the
--           values?
-- Grain:    ablation × metric × subset
--
-- model, ablation, metric, top_fraction, subset: as in `paper_comparison`
-- heads: heads that both have
-- rank_correlation: Spearman's correlation over the heads, ties sharing their mean rank
-- correlation: Pearson's correlation over the heads
-- median_relative_difference: median over heads of |ours - paper| / |paper|
-- median_difference: median over heads of |ours - paper|
-- paper, ours: means over the heads
with ranked as (
    select
        *,
        rank() over (partition by model, ablation, metric, top_fraction, subset order by ours)
            + (count(*) over (partition by model, ablation, metric, top_fraction, subset, ours) - 1) / 2.0 as our_rank,
        rank() over (partition by model, ablation, metric, top_fraction, subset order by paper)
            + (count(*) over (partition by model, ablation, metric, top_fraction, subset, paper) - 1) / 2.0 as paper_rank
    from paper_comparison
)
select
    model, ablation, metric, top_fraction, subset,
    count(*) as heads,
    corr(our_rank, paper_rank) as rank_correlation,
    corr(cast(ours as double), cast(paper as double)) as correlation,
    median(abs(cast(difference as double)) / nullif(abs(cast(paper as double)), 0)) as median_relative_difference,
    median(abs(cast(difference as double))) as median_difference,
    avg(cast(paper as double)) as paper,
    avg(cast(ours as double)) as ours
from ranked
group by model, ablation, metric, top_fraction, subset
order by model, ablation, metric, top_fraction
