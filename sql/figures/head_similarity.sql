-- Question: how alike do the heads of two layers write?
-- Grain:    layer × other_layer
--
-- layer, other_layer: as in `head_similarity`
-- cosine, cosine_without_token: means, over the pairs of different heads, of their absolute values
select
    layer, other_layer,
    avg(abs(cosine)) as cosine,
    avg(abs(cosine_without_token)) as cosine_without_token
from head_similarity
where not (layer = other_layer and head = other_head)
group by layer, other_layer
order by layer, other_layer
