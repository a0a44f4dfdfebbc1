-- Question: how does a head react to its own output in what it reads, beside controls of the same norm?
-- Grain:    added × head
--
-- added, layer, head: as in `self_additions`
-- slope: change of the head's direct effect per once that is added, over all multiples, through zero [logits]
select
    added, layer, head,
    sum(multiple * (cast(new_direct_effect as double) - direct_effect)) / sum(multiple * multiple) as slope
from self_additions
group by added, layer, head
order by added, layer, head
