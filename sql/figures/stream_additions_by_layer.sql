-- Question: what does the rest of the model make of a head's output that is added before a block?
-- Grain:    layer of the heads × block
--
-- layer, added_at: as in `stream_additions`
-- share: response as a share of the direct effect that was added, slope over all multiples through zero [%]
select
    layer, added_at,
    100 * sum(multiple * cast(response as double))
        / nullif(sum(multiple * multiple * cast(direct_effect as double)), 0) as share
from stream_additions
group by layer, added_at
order by layer, added_at
