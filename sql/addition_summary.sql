-- Question: how does the rest of the model respond when a head's output is added to the stream before a block: does
--           it counteract the addition, or amplify it?
-- Grain:    head × added_at × multiple, over the head's top tokens in the prompts that were measured
--
-- name, layer, head, added_at, multiple: as in `stream_additions`
-- tokens: positions
-- prompts: prompts of these tokens
-- added_effect: mean direct effect of what was added [logits]
-- logit_change: mean change of the correct token's logit [logits]
-- response: mean of logit_change - added_effect; below 0, the rest of the model works against what was added [logits]
-- response_error: its standard error, clustered by prompt; null with fewer than two prompts
--     [logits]
-- response_attention, response_mlp, response_norm, response_write_norm: means of its parts [logits]
-- own_change: mean change of the head's own direct effect; null if added after its block [logits]
-- taken_back: -response / added_effect of the means
with prompts as (
    select
        name, layer, head, added_at, multiple, prompt,
        count(*) as n,
        sum(multiple * cast(direct_effect as double)) as added_effect,
        sum(cast(logit_change as double)) as logit_change,
        sum(cast(response as double)) as response,
        sum(cast(response_attention as double)) as response_attention,
        sum(cast(response_mlp as double)) as response_mlp,
        sum(cast(response_norm as double)) as response_norm,
        sum(cast(response_write_norm as double)) as response_write_norm,
        sum(cast(own_change as double)) as own_change
    from stream_additions
    group by name, layer, head, added_at, multiple, prompt
),
with_mean as (
    select
        *,
        sum(response) over (partition by name, added_at, multiple)
            / sum(n) over (partition by name, added_at, multiple) as mean
    from prompts
)
select
    name, layer, head, added_at, multiple,
    sum(n) as tokens,
    count(*) as prompts,
    sum(added_effect) / sum(n) as added_effect,
    sum(logit_change) / sum(n) as logit_change,
    sum(response) / sum(n) as response,
    -- Σ over prompts of (Σ tokens of (x − mean))² is the middle of a cluster-robust variance.
    sqrt(sum(power(response - n * mean, 2)) * count(*) / nullif(count(*) - 1, 0)) / sum(n) as response_error,
    sum(response_attention) / sum(n) as response_attention,
    sum(response_mlp) / sum(n) as response_mlp,
    sum(response_norm) / sum(n) as response_norm,
    sum(response_write_norm) / sum(n) as response_write_norm,
    sum(own_change) / sum(n) as own_change,
    -sum(response) / nullif(sum(added_effect), 0) as taken_back
from with_mean
group by name, layer, head, added_at, multiple
order by layer, head, name, added_at, multiple
