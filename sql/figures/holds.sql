-- Question: what was held while heads were ablated?
-- Grain:    ablation × hold (other than `none`)
--
-- ablation, hold: as in `ablations`
select distinct ablation, hold
from head_summary
where component = 'head' and hold <> 'none' and strength = 1
order by ablation, hold
