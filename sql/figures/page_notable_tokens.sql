-- Question: on what text are heads repaired, over-repaired and made worse most?
-- Grain:    a row of `notable_tokens` about heads, for $ablation
--
-- sort: as in `notable_tokens`, words with hyphens
-- name: as in `notable_tokens`
-- prompt, position, direct_effect, logit_change, self_repair: as in `notable_tokens`
-- text, next_text: as in `notable_tokens`, a line's end as ⏎
select
    replace(sort, '_', '-') as sort,
    name,
    prompt, position,
    replace(text, chr(10), '⏎') as text,
    replace(next_text, chr(10), '⏎') as next_text,
    direct_effect, logit_change, self_repair
from notable_tokens
where component = 'head' and ablation = $ablation and strength = 1
order by case sort when 'repaired' then 0 when 'over_repaired' then 1 else 2 end, rank
