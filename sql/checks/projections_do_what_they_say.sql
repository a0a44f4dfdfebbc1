-- Along the correct token's direction, project_out and zero leave nothing and project_only everything. (To the rounding of
-- outputs that may be much larger than their part along it.)
with allowed as (
    select 1e-3 * coalesce(max(tolerance), 1) as share from rounding
)
select
    ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head, prompt, position,
    direct_effect, ablated_direct_effect
from ablations
cross join allowed
where strength = 1 and ((ablation in ('project_out', 'zero') and abs(ablated_direct_effect) > share * greatest(1, abs(direct_effect)))
    or (ablation = 'project_only'
        and abs(ablated_direct_effect - direct_effect) > share * greatest(1, abs(direct_effect))))
