-- Question: by what were heads replaced, nothing held?
-- Grain:    an ablation
--
-- ablation: as in `ablations`
select distinct ablation
from head_summary
where component = 'head' and hold = 'none' and strength = 1
order by ablation
