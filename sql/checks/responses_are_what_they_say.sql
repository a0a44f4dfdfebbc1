-- What follows an addition to the stream is the logit's change less what was added, and the sum of its parts.
select
    name, layer, head, added_at, multiple, prompt, position,
    logit_change, direct_effect, response, response_attention, response_mlp, response_norm, response_write_norm
from stream_additions
where abs(response - (logit_change - multiple * direct_effect))
        > 1e-4 * greatest(1, abs(logit_change) + abs(multiple * direct_effect))
    or abs(response - (response_attention + response_mlp + response_norm + response_write_norm))
        > 1e-3 * (select coalesce(max(tolerance), 1) from rounding)
            * greatest(1, abs(response_attention) + abs(response_mlp) + abs(response_norm) + abs(response_write_norm))
