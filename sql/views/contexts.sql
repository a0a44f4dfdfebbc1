-- Question: what is the text around a position?
-- Grain:    a position of a prompt
-- Example:  select c.context, l.log_prob from contexts c join clean l on l.prompt = c.prompt and l.position = c.position
--           order by l.log_prob limit 10
--
-- prompt, position: as in `tokens`
-- next_text: the token after the position; null at a prompt's end
-- context: eight tokens up to and with the position, «the token after it», and four more; a line's end shows as ⏎
with windows as (
    select
        prompt, position,
        lead(text, 1) over w as next_text,
        concat(
            lag(text, 7) over w, lag(text, 6) over w, lag(text, 5) over w, lag(text, 4) over w,
            lag(text, 3) over w, lag(text, 2) over w, lag(text, 1) over w, text
        ) as before,
        concat(lead(text, 2) over w, lead(text, 3) over w, lead(text, 4) over w, lead(text, 5) over w) as after
    from tokens
    window w as (partition by prompt order by position)
)
select
    prompt, position, next_text,
    replace(concat(before, '«', next_text, '»', after), chr(10), '⏎') as context
from windows
