-- Question: what did it do to ablate anything but a head without a hold?
-- Grain:    ablation × hold × component, the mean over such components on their top tokens
--
-- ablation, hold, component: as in `ablations`
-- components: how many
-- direct_effect, logit_change, self_repair: as in `head_summary`
select
    ablation, hold, component,
    count(*) as components,
    avg(direct_effect) as direct_effect,
    avg(logit_change) as logit_change,
    avg(self_repair) as self_repair
from head_summary
where subset = 'top' and not (component = 'head' and hold = 'none')
group by ablation, hold, component
order by component, ablation, hold
