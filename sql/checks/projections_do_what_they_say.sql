-- Along the correct token's direction, project_out and zero leave nothing and project_only everything. (To float32 rounding of
-- outputs that may be much larger than their part along it.)
select ablation, hold, component, layer, head, prompt, position, direct_effect, ablated_direct_effect
from ablations
where (ablation = 'project_out' and abs(ablated_direct_effect) > 1e-3 * greatest(1, abs(direct_effect)))
    or (ablation = 'project_only' and abs(ablated_direct_effect - direct_effect) > 1e-3 * greatest(1, abs(direct_effect)))
    or (ablation = 'zero' and abs(ablated_direct_effect) > 1e-3 * greatest(1, abs(direct_effect)))
