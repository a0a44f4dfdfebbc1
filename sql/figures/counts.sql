-- Question: on how much text?
-- Grain:    one row
--
-- prompts: prompts with measured positions
-- tokens: measured positions
select count(distinct prompt) as prompts, count(*) as tokens
from clean
