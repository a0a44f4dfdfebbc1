-- Question: how much of its loss is each head's self-repair?
-- Grain:    an ablated head of $ablation, on its top tokens
--
-- layer, head, self_repair, self_repair_error: as in `head_summary`
select layer, head, self_repair, self_repair_error from head_summary
where component = 'head' and hold = 'none' and strength = 1 and ablation = $ablation and subset = 'top'
