-- Question: on which tokens does a head matter most, in which text, and what becomes of them when it is ablated?
-- Grain:    ablation × hold × component × layer × head × token, of each head's `top` tokens
-- Example:  select context, direct_effect, logit_change, self_repair from top_tokens where name = 'L2H1' and rank <= 5
--           order by ablation, rank
--
-- name: as in `heads`
-- ablation, hold, component, layer, head: as in `ablations`
-- rank: from 1, by descending direct effect, ties by prompt and position; as far as `analysis.top_fraction` goes
-- prompt, position: as in `ablations`
-- next_text, context: as in `contexts`
-- direct_effect, ablated_direct_effect, logit_change, self_repair, repair_attention, repair_mlp, repair_norm,
--     repair_by_erasers: as in `ablations` [logits]
with ranked as (
    select
        *,
        row_number() over (
            partition by ablation, hold, component, layer, head
            order by direct_effect desc, prompt, position
        ) as rank,
        count(*) over (partition by ablation, hold, component, layer, head) as measured
    from ablations
)
select
    case r.component
        when 'head' then concat('L', r.layer, 'H', r.head)
        when 'mlp' then concat('L', r.layer, 'MLP')
        else concat('L', r.layer, 'ATT')
    end as name,
    r.ablation, r.hold, r.component, r.layer, r.head,
    r.rank, r.prompt, r.position,
    c.next_text, c.context,
    r.direct_effect, r.ablated_direct_effect, r.logit_change, r.self_repair,
    r.repair_attention, r.repair_mlp, r.repair_norm, r.repair_by_erasers
from ranked r
join contexts c on c.prompt = r.prompt and c.position = r.position
where r.rank <= greatest(1, floor($top_fraction * r.measured))
