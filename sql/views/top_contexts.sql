-- Question: on which tokens does a component matter most, in which text, and how do they change when it is ablated?
-- Grain:    ablation × strength × hold × hold_value × hold_own_mlp × row of `top_tokens`
-- Example:  select name, context, direct_effect, logit_change, self_repair from top_contexts where rank <= 5
--           order by self_repair desc limit 10
--
-- name, ablation, strength, hold, hold_value, hold_own_mlp, component, layer, head: as in `ablations`
-- rank: as in `top_tokens`, from 1
-- prompt, position: as in `ablations`
-- next_text, context: as in `contexts`
-- direct_effect, ablated_direct_effect, logit_change, self_repair, repair_attention, repair_mlp, repair_norm,
--     repair_write_norm, repair_by_erasers: as in `ablations` [logits]
select
    r.name, r.ablation, r.strength, r.hold, r.hold_value, r.hold_own_mlp, r.component, r.layer, r.head,
    t.rank, r.prompt, r.position,
    c.next_text, c.context,
    r.direct_effect, r.ablated_direct_effect, r.logit_change, r.self_repair,
    r.repair_attention, r.repair_mlp, r.repair_norm, r.repair_write_norm, r.repair_by_erasers
from top_tokens t
join ablations r
    on r.component = t.component and r.name = t.name and r.prompt = t.prompt and r.position = t.position
join contexts c on c.prompt = t.prompt and c.position = t.position
