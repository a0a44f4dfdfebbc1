-- A key stands for one row.
select 'ablations' as table_name, component, layer, head, prompt, position, count(*) as rows
from ablations
group by ablation, hold, component, layer, head, prompt, position
having count(*) > 1
union all
select 'direct_effects', component, layer, head, prompt, position, count(*)
from direct_effects
group by component, layer, head, prompt, position
having count(*) > 1
union all
select 'clean', null, null, null, prompt, position, count(*)
from clean
group by prompt, position
having count(*) > 1
union all
select 'tokens', null, null, null, prompt, position, count(*)
from tokens
group by prompt, position
having count(*) > 1
