-- Question: what does the rest of the model make of one head's output that is added before a block?
-- Grain:    head × block
--
-- layer, head, added_at: as in `stream_additions`
-- share: response as a share of the direct effect that was added, slope over all multiples through zero [%]
select
    layer, head, added_at,
    100 * sum(multiple * cast(response as double))
        / nullif(sum(multiple * multiple * cast(direct_effect as double)), 0) as share
from stream_additions
group by layer, head, added_at
order by layer, head, added_at
