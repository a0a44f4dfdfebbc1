"""A plain, hook-based measurement of self-repair in any causal language model of Hugging Face `transformers`.

Every ablated head is a forward pass of the whole model, in float64 but for what transformers itself casts to float32
(RMS norms, softmax and rotary angles of most families). Nothing here is shared with the pipeline, or fast.
`pipeline tables` describes the columns.
"""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Layout:
    """Where a family keeps its parts: paths in the model (the first two) and in a block."""

    blocks: str = "model.layers"
    final_norm: str = "model.norm"
    attention_norm: str = "input_layernorm"
    attention: str = "self_attn"
    output: str = "self_attn.o_proj"
    """What multiplies z with W_O and adds b_O."""
    mlp: str = "mlp"
    """The module whose output the MLP adds to the stream."""


LAYOUTS = {
    "gpt2": Layout("transformer.h", "transformer.ln_f", "ln_1", "attn", "attn.c_proj"),
    "gpt_neo": Layout("transformer.h", "transformer.ln_f", "ln_1", "attn.attention", "attn.attention.out_proj"),
    "gpt_neox": Layout("gpt_neox.layers", "gpt_neox.final_layer_norm", attention="attention", output="attention.dense"),
    "opt": Layout("model.decoder.layers", "model.decoder.final_layer_norm", "self_attn_layer_norm",
                  output="self_attn.out_proj", mlp="fc2"),
    "phi": Layout(final_norm="model.final_layernorm", output="self_attn.dense"),
}
"""By `model_type`; the others are laid out as Llama is."""


def load(path: Path):
    options = {"attn_implementation": "eager", "dtype": torch.float32}
    if path.suffix == ".gguf":
        model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, **options)
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(path, **options)
    for module in model.modules():
        # GPT-2 with this set insists on float32, and computes the same as without.
        if getattr(module, "reorder_and_upcast_attn", False):
            module.reorder_and_upcast_attn = False
    return model.double().eval()


def inputs(tokens_table, pairs_table):
    """tokens [prompts, S] and partners [samples, prompts] of a run's tables."""
    prompts, samples = (max(t[c].to_pylist()) + 1 for t, c in [(tokens_table, "prompt"), (pairs_table, "sample")])
    tokens = torch.tensor(tokens_table["token"].to_pylist()).view(prompts, -1)
    return tokens, torch.tensor(pairs_table["partner"].to_pylist()).view(samples, prompts)


def weight_of(projection):
    """[in, out]"""
    weight = projection.weight.detach()
    return weight if isinstance(projection, Conv1D) else weight.T


def bias_of(module, width):
    """[width]; zero if there is none."""
    bias = getattr(module, "bias", None)
    return torch.zeros(width, dtype=torch.float64) if bias is None else bias.detach()


class Norm:
    """What a norm that reads the stream computes: γ ⊙ centre(x) / scale(x) + β."""

    def __init__(self, module, width):
        kind = type(module).__name__
        self.centres = kind.endswith("LayerNorm")
        # OLMo's LayerNorm has no weights, and its ε is in the code.
        gamma = module.weight.detach() if hasattr(module, "weight") else torch.ones(width, dtype=torch.float64)
        self.gamma = 1 + gamma if kind == "GemmaRMSNorm" else gamma
        self.beta = bias_of(module, width)
        self.eps = next((getattr(module, n) for n in ("eps", "variance_epsilon") if hasattr(module, n)), 1e-5)

    def centre(self, x):
        return x - x.mean(-1, keepdim=True) if self.centres else x

    def scale(self, x):
        return (self.centre(x).pow(2).mean(-1) + self.eps).sqrt()


class Measurement:
    """One model; a forward pass that can replace one head's z, and says what every component wrote."""

    def __init__(self, model):
        self.model, c = model, model.config
        self.layout = LAYOUTS.get(c.model_type, Layout())
        self.blocks = model.get_submodule(self.layout.blocks)
        self.layers, self.heads, self.width = len(self.blocks), c.num_attention_heads, c.hidden_size
        self.norm_module = model.get_submodule(self.layout.final_norm)
        self.norm = self.norm_of(self.norm_module)
        outputs = [self.part(l, "output") for l in range(self.layers)]
        self.w_o = [weight_of(output) for output in outputs]
        self.d_head = self.w_o[0].shape[0] // self.heads
        # b_V' and b_O' of every layer: z is free of the former, which the latter has.
        self.value_bias = [self.value_bias_of(l) for l in range(self.layers)]
        self.attention_bias = [
            bias_of(outputs[l], self.width) + self.value_bias[l] @ self.w_o[l] for l in range(self.layers)]
        head = model.get_output_embeddings()
        self.w_u = head.weight.detach()
        self.centred = self.w_u - self.w_u.mean(0)
        b_u = bias_of(head, len(self.w_u))
        self.centred_bias = b_u - b_u.mean()

    def part(self, layer, name):
        return self.blocks[layer].get_submodule(getattr(self.layout, name))

    def norm_of(self, module):
        return Norm(module, self.width)

    def value_bias_of(self, layer):
        """b_V' = b_V + β W_V, [heads · d_head]: what the values are when the norm before attention gives β alone."""
        attention = self.part(layer, "attention")
        beta = self.norm_of(self.part(layer, "attention_norm")).beta
        if hasattr(attention, "c_attn"):  # all heads' queries, then keys, then values
            values = attention.c_attn(beta).chunk(3)[2]
        elif hasattr(attention, "query_key_value"):  # head after head, each with its query, key and value
            values = attention.query_key_value(beta).view(self.heads, 3, self.d_head)[:, 2]
        else:
            values = attention.v_proj(beta)
        values = values.detach().reshape(-1, self.d_head)
        return values.repeat_interleave(self.heads // len(values), 0).flatten()

    def span(self, head):
        return slice(head * self.d_head, (head + 1) * self.d_head)

    @torch.no_grad()
    def run(self, tokens, replace=None):
        """tokens [B, S]; replace = (layer, head, z [B, S, d_head]). All z are without b_V'."""
        seen = {"z": [None] * self.layers, "mlp": [None] * self.layers}
        handles = []

        def before_first_block(_, args):
            seen["embed"] = args[0].detach().clone()

        def before_output(layer):
            def hook(_, args):
                z = args[0] - self.value_bias[layer]
                if replace is not None and replace[0] == layer:
                    z[..., self.span(replace[1])] = replace[2]
                seen["z"][layer] = z
                return (z + self.value_bias[layer],)
            return hook

        def after_mlp(layer):
            def hook(_, __, output):
                seen["mlp"][layer] = output.detach().clone().view(*tokens.shape, -1)
            return hook

        def before_norm(_, args):
            seen["residual"] = args[0].detach().clone()

        handles.append(self.blocks[0].register_forward_pre_hook(before_first_block))
        for l in range(self.layers):
            handles.append(self.part(l, "output").register_forward_pre_hook(before_output(l)))
            handles.append(self.part(l, "mlp").register_forward_hook(after_mlp(l)))
        handles.append(self.norm_module.register_forward_pre_hook(before_norm))
        seen["logits"] = self.model(input_ids=tokens, use_cache=False).logits
        for handle in handles:
            handle.remove()
        seen["scale"] = self.norm.scale(seen["residual"])
        return seen

    def head_outputs(self, z, layer):
        """[B, S, H, D]"""
        per_head = z.unflatten(-1, (self.heads, self.d_head))
        return torch.einsum("bshe,hed->bshd", per_head, self.w_o[layer].unflatten(0, (self.heads, self.d_head)))


def centred_logit(logits, targets):
    """[B, S]: the target's logit less the mean logit."""
    return logits.gather(-1, targets[..., None])[..., 0] - logits.mean(-1)


class Effects:
    """What is measured of one model on tokens [prompts, S]; partner [samples, prompts]."""

    def __init__(self, m: Measurement, tokens, partner):
        self.m, self.tokens, self.partner = m, tokens, partner
        self.prompts, self.positions = tokens.shape[0], tokens.shape[1] - 1
        self.targets = tokens[:, 1:]
        self.clean = clean = m.run(tokens)
        self.s = clean["scale"][:, :-1]
        self.u = m.norm.centre(m.norm.gamma * m.centred[self.targets])
        self.direction = self.u / self.s[..., None]
        self.logit = centred_logit(clean["logits"][:, :-1], self.targets)
        self.embed = self.de(clean["embed"])
        self.heads, self.mlps = self.parts(clean)
        self.biases = torch.stack([self.de(b.expand_as(clean["embed"])) for b in m.attention_bias])
        self.constant = (m.norm.beta * m.centred[self.targets]).sum(-1) + m.centred_bias[self.targets]
        # The largest departures from what must hold.
        self.residuals = {"stream": self.stream_gap(), "completeness": self.completeness_gap(), "causes": 0.0}
        assert self.residuals["stream"] < 1e-9, "the components must sum to the stream"
        # Hugging Face's RMS norm computes in float32 whatever the model's type, so not to float64 rounding.
        assert self.residuals["completeness"] < 1e-4, "direct effects must sum to the logit"

    def de(self, c):
        return (c[:, :-1] * self.direction).sum(-1)

    def parts(self, seen):
        """Direct effects of heads [layers, B, S, H] and MLPs [layers, B, S]."""
        directions = self.direction[:, :, None]
        heads = [(self.m.head_outputs(z, l)[:, :-1] * directions).sum(-1) for l, z in enumerate(seen["z"])]
        return torch.stack(heads), torch.stack([self.de(mlp) for mlp in seen["mlp"]])

    def stream_gap(self):
        total = self.clean["embed"] + sum(self.clean["mlp"]) + sum(self.m.attention_bias)
        total = total + sum(z @ w_o for z, w_o in zip(self.clean["z"], self.m.w_o))
        return (total - self.clean["residual"]).abs().max().item()

    def completeness_gap(self):
        total = self.embed + self.heads.sum((0, -1)) + self.mlps.sum(0) + self.biases.sum(0)
        return (total - (self.logit - self.constant)).abs().max().item()

    def replacements(self, kind, layer, head):
        z = self.clean["z"][layer][..., self.m.span(head)]
        return {
            "zero": [torch.zeros_like(z)],
            "mean": [z.mean((0, 1), keepdim=True).expand_as(z)],
            "resample": [z[partner] for partner in self.partner],
        }[kind]

    def ablate(self, kind, layer, head):
        """Columns of `ablations`, each [prompts, positions]."""
        mean, replacements = {}, self.replacements(kind, layer, head)
        for replacement in replacements:
            ablated = self.m.run(self.tokens, (layer, head, replacement))
            heads, mlps = self.parts(ablated)
            d_heads, d_mlps = heads - self.heads, mlps - self.mlps
            d_heads[layer, ..., head] = 0
            s, s2 = self.s, ablated["scale"][:, :-1]
            residual = self.m.norm.centre(ablated["residual"][:, :-1])
            v = {}
            v["logit_change"] = centred_logit(ablated["logits"][:, :-1], self.targets) - self.logit
            v["direct_effect"] = self.heads[layer, ..., head]
            v["ablated_direct_effect"] = heads[layer, ..., head]
            v["self_repair"] = v["logit_change"] - (v["ablated_direct_effect"] - v["direct_effect"])
            v["repair_attention"] = d_heads.sum((0, -1))
            v["repair_mlp"] = d_mlps.sum(0)
            v["repair_norm"] = (residual * self.u).sum(-1) * (1 / s2 - 1 / s)
            v["repair_by_erasers"] = (d_heads * (self.heads < 0)).sum((0, -1)) + (d_mlps * (self.mlps < 0)).sum(0)
            v["norm_scale"], v["ablated_norm_scale"] = s, s2
            v["ablated_residual_norm"] = residual.norm(dim=-1)
            gap = v["self_repair"] - v["repair_attention"] - v["repair_mlp"] - v["repair_norm"]
            self.residuals["causes"] = max(self.residuals["causes"], gap.abs().max().item())
            for k, x in v.items():
                mean[k] = mean.get(k, 0) + x / len(replacements)
        assert self.residuals["causes"] < 1e-4, "the causes must sum to the self-repair"
        return mean

    def rows(self, key: dict, values: dict):
        """A part of a table: one row a measured position, with `key` the same in all."""
        n = self.prompts * self.positions
        prompt = [p for p in range(self.prompts) for _ in range(self.positions)]
        position = list(range(self.positions)) * self.prompts
        columns = {k: [v] * n for k, v in key.items()} | {"prompt": prompt, "position": position}
        return columns | {k: v.flatten().tolist() for k, v in values.items()}

    def clean_table(self):
        log_prob = self.clean["logits"][:, :-1].log_softmax(-1).gather(-1, self.targets[..., None])[..., 0]
        residual_norm = self.m.norm.centre(self.clean["residual"][:, :-1]).norm(dim=-1)
        return [self.rows({}, {
            "logit": self.logit, "log_prob": log_prob, "norm_scale": self.s, "residual_norm": residual_norm})]

    def direct_effects_table(self, layers):
        """Of a model without biases in its attention, no `attention_bias`."""
        def part(component, layer, head, values):
            return self.rows({"component": component, "layer": layer, "head": head}, {"direct_effect": values})

        parts = [part("constant", None, None, self.constant), part("embed", None, None, self.embed)]
        for l in layers:
            parts += [part("head", l, h, self.heads[l, ..., h]) for h in range(self.m.heads)]
            if self.m.attention_bias[l].any():
                parts.append(part("attention_bias", l, None, self.biases[l]))
            parts.append(part("mlp", l, None, self.mlps[l]))
        return parts

    def ablations_table(self, names):
        parts = []
        for kind in ["mean", "resample", "zero"]:
            for name in names:
                layer, head = map(int, name[1:].split("H"))
                key = {"ablation": kind, "layer": layer, "head": head}
                parts.append(self.rows(key, self.ablate(kind, layer, head)))
        return parts

    def logits_table(self, prompts):
        """A sample of the whole logits: every 97th token of the vocabulary (all of a small one), at every 5th
        position."""
        ids = range(0, len(self.m.w_u), 97 if len(self.m.w_u) > 4096 else 1)
        return [
            {"prompt": [p] * len(ids), "position": [s] * len(ids), "token": list(ids),
             "logit": self.clean["logits"][p, s, list(ids)].tolist()}
            for p in range(min(prompts, self.prompts)) for s in range(0, self.positions + 1, 5)]

    def write(self, out: Path, names, layers, logits_of):
        """`names` are the heads to ablate, `layers` those with direct effects, `logits_of` the prompts with logits."""
        out.mkdir(parents=True, exist_ok=True)
        write_table(out / "ablations.parquet", self.ablations_table(names))
        write_table(out / "clean.parquet", self.clean_table())
        write_table(out / "direct_effects.parquet", self.direct_effects_table(layers))
        write_table(out / "logits.parquet", self.logits_table(logits_of))


TYPES = {name: pa.string() for name in ["ablation", "component"]}
TYPES |= {name: pa.uint32() for name in ["layer", "head", "prompt", "position", "token"]}


def write_table(path: Path, parts):
    """All other columns are Float32."""
    columns = {name: [x for part in parts for x in part[name]] for name in parts[0]}
    table = pa.table({name: pa.array(values, TYPES.get(name, pa.float32())) for name, values in columns.items()})
    floats = [name for name in columns if name not in TYPES]
    pq.write_table(
        table, path, compression="zstd", compression_level=19, use_dictionary=[n for n in columns if n in TYPES],
        use_byte_stream_split=floats)
