-- Question: how many top tokens does a component have?
-- Grain:    one row
--
-- tokens: top tokens of the component that has most
select max(tokens) as tokens
from head_summary
where subset = 'top'
