-- Question: what did it do to ablate anything but a head without a hold?
-- Grain:    ablation × strength × hold × hold_value × hold_own_mlp × component, the mean over such components on their top tokens
--
-- ablation, strength, hold, hold_value, hold_own_mlp, component: as in `ablations`
-- components: how many
-- direct_effect, logit_change, self_repair: as in `head_summary`
select
    ablation, strength, hold, hold_value, hold_own_mlp, component,
    count(*) as components,
    avg(direct_effect) as direct_effect,
    avg(logit_change) as logit_change,
    avg(self_repair) as self_repair
from head_summary
where subset = 'top' and not (component = 'head' and hold = 'none' and strength = 1)
group by ablation, strength, hold, hold_value, hold_own_mlp, component
order by component, ablation, strength, hold, hold_value, hold_own_mlp
