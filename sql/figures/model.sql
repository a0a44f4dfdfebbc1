-- Question: which model was measured?
-- Grain:    one row
--
-- name, source, layers, heads, d_model, sha256: as in `model`
select name, source, layers, heads, d_model, sha256
from model
