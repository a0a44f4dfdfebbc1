-- Question: for which ablations are there notable tokens of heads?
-- Grain:    an ablation, resample first
--
-- ablation: as in `ablations`
select ablation
from notable_tokens
where component = 'head' and strength = 1
group by ablation
order by ablation <> 'resample', ablation
