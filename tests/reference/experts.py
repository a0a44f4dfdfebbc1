"""The neurons of mixtures of experts: what each writes and how active it is, from the weights that transformers has, with
nothing of how it multiplies them."""

import torch


def parts(experts):
    """Of the module with the weights of all experts: gate and other input [E, D, M], output [E, M, D], and biases of the
    three, or None."""
    fused, down = experts.gate_up_proj.detach(), experts.down_proj.detach()
    if hasattr(experts, "gate_up_proj_bias"):  # GPT-OSS: by turns, and already [in, out]
        biases = experts.gate_up_proj_bias.detach()
        return fused[..., ::2], fused[..., 1::2], down, biases[..., ::2], biases[..., 1::2], experts.down_proj_bias.detach()
    gate, up = fused.mT.chunk(2, dim=-1)
    return gate, up, down.mT, None, None, None


def activated(experts, gate, up):
    if hasattr(experts, "limit"):
        gate, up = gate.clamp(max=experts.limit), up.clamp(-experts.limit, experts.limit)
        return gate / (1 + torch.exp(-experts.alpha * gate)) * (up + 1)
    return experts.act_fn(gate) * up


def neurons(experts, x, index, weights):
    """x [N, D] and the K experts chosen at each row with their weights → activations with these weights [N, E · M], zero
    for experts that were not chosen; and what the experts' biases write, [N, D]."""
    gate, up, down, b_gate, b_up, b_down = parts(experts)
    dense = torch.zeros(len(x), len(gate), dtype=x.dtype).scatter(1, index, weights.to(x.dtype))
    gates, ups = torch.einsum("nd,edm->nem", x, gate), torch.einsum("nd,edm->nem", x, up)
    if b_gate is not None:
        gates, ups = gates + b_gate, ups + b_up
    post = activated(experts, gates, ups) * dense[..., None]
    return post.flatten(1), torch.zeros_like(x) if b_down is None else dense @ b_down


def shared_neurons(mlp, x):
    """Activations of the expert that every position goes through, with its weight."""
    shared = mlp.shared_expert
    return shared.act_fn(shared.gate_proj(x)) * shared.up_proj(x) * torch.sigmoid(mlp.shared_expert_gate(x))


def w_out(mlp):
    """[neurons of all experts, the shared one last, D]"""
    outputs = parts(mlp.experts)[2].flatten(0, 1)
    return torch.cat([outputs, mlp.shared_expert.down_proj.weight.detach().T]) if hasattr(mlp, "shared_expert") else outputs


def of_neuron(mlp, number):
    """Its expert, the shared one after the others, and which of that expert's it is."""
    count, size = parts(mlp.experts)[2].shape[:2]
    expert = min(number // size, count)
    return expert, number - expert * size
