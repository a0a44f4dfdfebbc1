-- Question: which heads write alike?
-- Grain:    measure × rank: the 50 pairs of heads whose mean cosine has the highest absolute value
--
-- measure: `cosine`, or `cosine_without_token`: without what they write along the correct token's direction
-- rank: place by that measure's absolute value, from 1
-- name, layer, head, other_name, other_layer, other_head: the two heads
-- cosine, cosine_without_token: both measures of the pair
with measures as (
    select 'cosine' as measure, cosine as value, * from head_similarity
    union all
    select 'cosine_without_token' as measure, cosine_without_token as value, * from head_similarity
),
ranked as (
    select
        *,
        cast(row_number() over (
            partition by measure
            order by abs(value) desc, layer, head, other_layer, other_head
        ) as int) as rank
    from measures
)
select
    measure, rank, name, layer, head, other_name, other_layer, other_head,
    cosine, cosine_without_token
from ranked
where rank <= 50
order by measure, rank
