-- Question: does ablating a head shrink the norm of the final stream?
-- Grain:    subset × bin, over all heads and tokens of $ablation
--
-- subset: `top`: top tokens of the ablated head; `other`: the others
-- bin: which bin of width $width from $low on holds the ratio of the ablated to the clean norm of the final stream
-- rows: tokens in it, counted per head
with ratios as (
    select a.layer, a.head, a.prompt, a.position, cast(a.ablated_residual_norm as double) / c.residual_norm as ratio
    from ablations a
    join clean c on a.prompt = c.prompt and a.position = c.position
    where a.component = 'head' and a.hold = 'none' and a.strength = 1 and a.ablation = $ablation
),
tops as (
    select layer, head, prompt, position
    from top_tokens
    where component = 'head'
)
select
    case when t.prompt is null then 'other' else 'top' end as subset,
    floor((r.ratio - $low) / $width) as bin,
    count(*) as rows
from ratios r
left join tops t on r.layer = t.layer and r.head = t.head and r.prompt = t.prompt and r.position = t.position
group by 1, 2
