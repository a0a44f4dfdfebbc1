"""A plain, hook-based measurement of self-repair in any causal language model of Hugging Face `transformers`.

Every ablation is a forward pass of the whole model, in float64 but for what transformers itself casts to float32 (RMS
norms, softmax and rotary angles of most families). Nothing here is shared with the pipeline, or fast.
`pipeline tables` describes the columns.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from transformers.pytorch_utils import Conv1D

import experts


@dataclass(frozen=True)
class Layout:
    """Where a family keeps its parts: paths in the model (the first two) and in a block."""

    blocks: str = "model.layers"
    final_norm: str = "model.norm"
    attention_norm: str | None = "input_layernorm"
    """None where attention reads the stream as it is."""
    attention: str = "self_attn"
    output: str = "self_attn.o_proj"
    """What multiplies z with W_O and adds b_O."""
    mlp: str = "mlp"
    """The module whose output the MLP adds to the stream."""
    down: str | None = "mlp.down_proj"
    """What multiplies the MLP's neurons with W_out; None where the MLP is a mixture of experts."""
    write_norms: tuple[str, str] | None = None
    """The norms on what attention and the MLP write; then `mlp` is the latter."""


AFTER_BOTH = Layout(
    mlp="post_feedforward_layernorm", write_norms=("post_attention_layernorm", "post_feedforward_layernorm"))
EXPERTS = Layout(down=None)
LAYOUTS = {
    "apertus": Layout(attention_norm="attention_layernorm"),
    "gpt2": Layout("transformer.h", "transformer.ln_f", "ln_1", "attn", "attn.c_proj", down="mlp.c_proj"),
    "gpt_neo": Layout("transformer.h", "transformer.ln_f", "ln_1", "attn.attention", "attn.attention.out_proj",
                      down="mlp.c_proj"),
    "gpt_neox": Layout("gpt_neox.layers", "gpt_neox.final_layer_norm", attention="attention", output="attention.dense",
                       down="mlp.dense_4h_to_h"),
    "gptj": Layout("transformer.h", "transformer.ln_f", "ln_1", "attn", "attn.out_proj", down="mlp.fc_out"),
    "codegen": Layout("transformer.h", "transformer.ln_f", "ln_1", "attn", "attn.out_proj", down="mlp.fc_out"),
    "gpt_bigcode": Layout("transformer.h", "transformer.ln_f", "ln_1", "attn", "attn.c_proj", down="mlp.c_proj"),
    "falcon": Layout("transformer.h", "transformer.ln_f", attention="self_attention", output="self_attention.dense",
                     down="mlp.dense_4h_to_h"),
    # Their MLP adds to the stream itself.
    "bloom": Layout("transformer.h", "transformer.ln_f", attention="self_attention", output="self_attention.dense",
                    mlp="mlp.dense_4h_to_h", down="mlp.dense_4h_to_h"),
    "mpt": Layout("transformer.blocks", "transformer.norm_f", "norm_1", "attn", "attn.out_proj", "ffn.down_proj",
                  "ffn.down_proj"),
    "opt": Layout("model.decoder.layers", "model.decoder.final_layer_norm", "self_attn_layer_norm",
                  output="self_attn.out_proj", mlp="fc2", down="fc2"),
    "gemma2": AFTER_BOTH, "gemma3_text": AFTER_BOTH,
    "glm4": Layout(mlp="post_mlp_layernorm", write_norms=("post_self_attn_layernorm", "post_mlp_layernorm")),
    "gemma3": replace(AFTER_BOTH, blocks="model.language_model.layers", final_norm="model.language_model.norm"),
    "olmo2": replace(AFTER_BOTH, attention_norm=None), "olmo3": replace(AFTER_BOTH, attention_norm=None),
    "gpt_oss": EXPERTS, "mixtral": EXPERTS, "olmoe": EXPERTS, "qwen2_moe": EXPERTS, "qwen3_moe": EXPERTS,
    "granitemoe": replace(EXPERTS, mlp="block_sparse_moe"),
    "phi": Layout(final_norm="model.final_layernorm", output="self_attn.dense", down="mlp.fc2"),
    "starcoder2": Layout(down="mlp.c_proj"),
}
"""By `model_type`; the others are laid out as Llama is."""


def layout_of(config):
    layout = LAYOUTS.get(config.model_type, Layout())
    if config.model_type == "falcon" and config.new_decoder_architecture and config.num_ln_in_parallel_attn != 1:
        return replace(layout, attention_norm="ln_attn")
    return layout


def attention_implementation(config: dict):
    """Eager, but for Falcon with ALiBi, which transformers 5.24 adds twice to the scores of eager attention."""
    return "sdpa" if config["model_type"] == "falcon" and config.get("alibi") else "eager"


def load(path: Path):
    options = {"attn_implementation": "eager", "dtype": torch.float32, "experts_implementation": "eager"}
    if path.suffix == ".gguf":
        model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, **options)
    else:
        options["attn_implementation"] = attention_implementation(
            json.loads((path / "config.json").read_text()))
        model = transformers.AutoModelForCausalLM.from_pretrained(path, **options)
    for module in model.modules():
        # GPT-2 with this set insists on float32, and computes the same as without.
        if getattr(module, "reorder_and_upcast_attn", False):
            module.reorder_and_upcast_attn = False
    return model.double().eval()


def input_table(folder: Path, name):
    """A table of a run, or of a folder of expected values."""
    run = folder / "tables" / name
    return pq.read_table(run if run.is_dir() else folder / f"{name}.parquet")


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


WEIGHT_IS_GAMMA_LESS_1 = ["GemmaRMSNorm", "Gemma2RMSNorm", "Gemma3RMSNorm", "NemotronLayerNorm1P"]


class Norm:
    """What a norm computes: γ ⊙ centre(x) / scale(x) + β."""

    def __init__(self, module, width):
        kind = type(module).__name__
        self.centres = "LayerNorm" in kind
        # OLMo's LayerNorm has no weights, and its ε is in the code.
        gamma = module.weight.detach() if hasattr(module, "weight") else torch.ones(width, dtype=torch.float64)
        self.gamma = 1 + gamma if kind in WEIGHT_IS_GAMMA_LESS_1 else gamma
        self.beta = bias_of(module, width)
        self.eps = next((getattr(module, n) for n in ("eps", "variance_epsilon") if hasattr(module, n)), 1e-5)

    def centre(self, x):
        return x - x.mean(-1, keepdim=True) if self.centres else x

    def scale(self, x):
        return (self.centre(x).pow(2).mean(-1) + self.eps).sqrt()


class Measurement:
    """One model; a forward pass that can replace what its parts write, and says what every component wrote."""

    def __init__(self, model):
        self.model, c = model, model.config.get_text_config()
        self.layout = layout_of(model.config)
        # Granite adds a multiple of what a part writes to the stream. It counts as part of W_O and W_out.
        self.multiplier = getattr(c, "residual_multiplier", 1.0)
        self.blocks = model.get_submodule(self.layout.blocks)
        self.layers, self.heads, self.width = len(self.blocks), c.num_attention_heads, c.hidden_size
        self.norm_module = model.get_submodule(self.layout.final_norm)
        self.norm = self.norm_of(self.norm_module)
        outputs = [self.part(l, "output") for l in range(self.layers)]
        self.w_o = [self.multiplier * weight_of(output) for output in outputs]
        self.d_head = self.w_o[0].shape[0] // self.heads
        # b_V' and b_O' of every layer: z is free of the former, which the latter has.
        self.value_bias = [self.value_bias_of(l) for l in range(self.layers)]
        self.attention_bias = [
            self.multiplier * bias_of(outputs[l], self.width) + self.value_bias[l] @ self.w_o[l]
            for l in range(self.layers)]
        # Norms on what attention and the MLP write, a pair a layer.
        names = self.layout.write_norms or ()
        self.write_modules = [[block.get_submodule(name) for name in names] for block in self.blocks]
        self.write_norms = [[self.norm_of(module) for module in modules] for modules in self.write_modules]
        head = model.get_output_embeddings()
        # Cohere and Granite scale the logits, which counts as part of W_U. (MPT has the key too, and ignores it.)
        scale = c.logit_scale if c.model_type.startswith("cohere") else 1 / getattr(c, "logits_scaling", 1.0)
        self.w_u = head.weight.detach() * scale
        self.centred = self.w_u - self.w_u.mean(0)
        b_u = bias_of(head, len(self.w_u))
        self.centred_bias = b_u - b_u.mean()

    def part(self, layer, name):
        return self.blocks[layer].get_submodule(getattr(self.layout, name))

    def w_out(self, layer):
        """[neurons, D]; of a mixture, the neurons of one expert after those of another."""
        written = experts.w_out(self.part(layer, "mlp")) if self.layout.down is None else weight_of(self.part(layer, "down"))
        return self.multiplier * written

    def neuron(self, layer, number):
        """The columns that name a neuron."""
        if self.layout.down is not None:
            return {"neuron": number}
        expert, neuron = experts.of_neuron(self.part(layer, "mlp"), number)
        return {"expert": expert, "neuron": neuron}

    def norm_of(self, module):
        return Norm(module, self.width)

    def value_bias_of(self, layer):
        """b_V' = b_V + β W_V, [heads · d_head]: what the values are when the norm before attention gives β alone. With
        attention sinks, weights do not sum to 1, and it is part of z."""
        attention, c = self.part(layer, "attention"), self.model.config
        if hasattr(attention, "sinks"):
            return torch.zeros(self.heads * self.d_head, dtype=torch.float64)
        if self.layout.attention_norm is None:
            beta = torch.zeros(self.width, dtype=torch.float64)
        else:
            beta = self.norm_of(self.part(layer, "attention_norm")).beta
        if c.model_type == "codegen":  # four parts, each with its queries, then values, then keys
            values = attention.qkv_proj(beta).view(4, 3, -1)[:, 1]
        elif c.model_type == "phi3":  # all heads' queries, then the fewer keys, then the values
            values = attention.qkv_proj(beta)[-c.num_key_value_heads * self.d_head:]
        elif getattr(c, "new_decoder_architecture", False):  # groups of queries, each with its key and value
            values = attention.query_key_value(beta).view(c.num_kv_heads, -1, self.d_head)[:, -1]
        elif getattr(c, "multi_query", False):  # all heads' queries, then the one key, then the value
            fused = attention.c_attn if hasattr(attention, "c_attn") else attention.query_key_value
            values = fused(beta)[-self.d_head:]
        elif c.model_type == "gpt_bigcode":  # as query_key_value
            values = attention.c_attn(beta).view(self.heads, 3, self.d_head)[:, 2]
        elif c.model_type == "mpt":  # all heads' queries, then keys, then values
            values = attention.Wqkv(beta).chunk(3)[2]
        elif hasattr(attention, "c_attn"):  # all heads' queries, then keys, then values
            values = attention.c_attn(beta).chunk(3)[2]
        elif hasattr(attention, "query_key_value"):  # head after head, each with its query, key and value
            values = attention.query_key_value(beta).view(self.heads, 3, self.d_head)[:, 2]
        else:
            values = attention.v_proj(beta)
        values = values.detach().reshape(-1, self.d_head)
        return values.repeat_interleave(self.heads // len(values), 0).flatten()

    def written(self, seen, layer, c):
        """What c [B, S, …, D], a part of what attention gives, is of what it writes in the run that was seen."""
        if not self.write_norms[layer]:
            return c
        scale = seen["write_scales"][0][layer]
        return self.write_norms[layer][0].gamma * c / scale.view(*scale.shape, *[1] * (c.dim() - 2))

    def span(self, head):
        return slice(head * self.d_head, (head + 1) * self.d_head)

    @torch.no_grad()
    def run(self, tokens, edits=None):
        """tokens [B, S]; edits: by (part, layer), a function from what the part writes to what takes its place. The
        parts are `stream` (what the block reads), `z` (of all heads, without b_V'), `linear` (what attention gives
        before a norm on what it writes), `attention` and `mlp` (what they add to the stream). What is seen of `z`, `mlp` and `post` (neurons) is after these edits."""
        edits = edits or {}
        seen = {part: [None] * self.layers for part in ["stream", "z", "mlp", "post", "expert_biases"]}
        seen["write_scales"] = [None] * self.layers, [None] * self.layers
        handles = []

        def edited(part, layer, value):
            return edits[part, layer](value) if (part, layer) in edits else value

        def before_block(layer):
            def hook(_, args):
                seen["stream"][layer] = stream = edited("stream", layer, args[0]).detach().clone()
                return (stream, *args[1:])
            return hook

        def before_output(layer):
            def hook(_, args):
                seen["z"][layer] = z = edited("z", layer, args[0] - self.value_bias[layer])
                return (z + self.value_bias[layer],)
            return hook

        def after_output(part, layer):
            m = self.multiplier
            return lambda _, __, output: edited(part, layer, output * m) / m

        def before_down(layer):
            def hook(_, args):
                seen["post"][layer] = args[0].detach().clone().view(*tokens.shape, -1)
            return hook

        def before_experts(layer):
            def hook(module, args):
                x = args[0].detach()
                post, biases = experts.neurons(module, *(of.detach() for of in args))
                if hasattr(self.part(layer, "mlp"), "shared_expert"):
                    post = torch.cat([post, experts.shared_neurons(self.part(layer, "mlp"), x)], 1)
                seen["post"][layer] = post.view(*tokens.shape, -1)
                seen["expert_biases"][layer] = biases.view(*tokens.shape, -1)
            return hook

        def after_mlp(layer):
            def hook(_, __, output):
                # GPT-OSS gives the router's weights too.
                whole, output = output, output[0] if isinstance(output, tuple) else output
                mlp = output.detach().view(*tokens.shape, -1) * self.multiplier
                seen["mlp"][layer] = mlp = edited("mlp", layer, mlp)
                # Falcon adds to the output in place.
                mlp = (mlp / self.multiplier).view(output.shape)
                return (mlp, *whole[1:]) if isinstance(whole, tuple) else mlp
            return hook

        def before_write_norm(layer, which):
            def hook(_, args):
                seen["write_scales"][which][layer] = self.write_norms[layer][which].scale(args[0].detach())
            return hook

        def before_norm(_, args):
            seen["residual"] = args[0].detach().clone()

        for l in range(self.layers):
            handles.append(self.blocks[l].register_forward_pre_hook(before_block(l)))
            handles.append(self.part(l, "output").register_forward_pre_hook(before_output(l)))
            handles.append(self.part(l, "output").register_forward_hook(after_output("linear", l)))
            writes = self.write_modules[l][0] if self.write_modules[l] else self.part(l, "output")
            handles.append(writes.register_forward_hook(after_output("attention", l)))
            for which, module in enumerate(self.write_modules[l]):
                handles.append(module.register_forward_pre_hook(before_write_norm(l, which)))
            if self.layout.down is None:
                module = self.part(l, "mlp").experts
                handles.append(module.register_forward_pre_hook(before_experts(l)))
            else:
                handles.append(self.part(l, "down").register_forward_pre_hook(before_down(l)))
            handles.append(self.part(l, "mlp").register_forward_hook(after_mlp(l)))
        handles.append(self.norm_module.register_forward_pre_hook(before_norm))
        seen["logits"] = self.model(input_ids=tokens, use_cache=False).logits
        for handle in handles:
            handle.remove()
        seen["embed"] = seen["stream"][0]
        seen["scale"] = self.norm.scale(seen["residual"])
        return seen

    def put_head(self, layer, head, new):
        """The edit that makes a head's z `new` [B, S, d_head]."""
        def edit(z):
            z = z.clone()
            z[..., self.span(head)] = new
            return z
        return {("z", layer): edit}

    def head_outputs(self, z, layer):
        """[B, S, H, D]"""
        per_head = z.unflatten(-1, (self.heads, self.d_head))
        return torch.einsum("bshe,hed->bshd", per_head, self.w_o[layer].unflatten(0, (self.heads, self.d_head)))


class NextTokens:
    """What is measured of prompts: the logit of the next token, at all positions but the last."""

    def __init__(self, tokens):
        self.answer = tokens[:, 1:]
        prompts, positions = self.answer.shape
        self.prompt = [p for p in range(prompts) for _ in range(positions)]
        self.position = list(range(positions)) * prompts

    def at(self, x):
        """[B, S, …] to [B, positions, …]: what the stream holds where something is measured."""
        return x[:, :-1]

    def spread(self, x, length):
        """[B, positions, …] to [B, S = length, …]: the reverse of `at`, zero elsewhere."""
        return torch.cat([x, torch.zeros_like(x[:, :1])], 1)

    def rows(self, x):
        """[V, …] to [B, positions, …]: what belongs to the measured token."""
        return x[self.answer]

    def pick(self, x):
        """[B, positions, V] to [B, positions]"""
        return x.gather(-1, self.answer[..., None])[..., 0]


class Answers:
    """What is measured of a prompt set: the logit of a prompt's answer, less that of its wrong answer if it has one, at
    one position a prompt."""

    def __init__(self, prompt, position, answer, wrong):
        """Lists of one value a prompt; `wrong` may have None."""
        self.prompt, self.position, self.answer = prompt, position, torch.tensor(answer)[:, None]
        self.wrong = torch.tensor([w or 0 for w in wrong])[:, None]
        self.has_wrong = torch.tensor([w is not None for w in wrong])[:, None]
        self.each = torch.arange(len(prompt))

    def at(self, x):
        return x[self.each, self.position][:, None]

    def spread(self, x, length):
        out = torch.zeros(len(x), length, *x.shape[2:], dtype=x.dtype)
        out[self.each, self.position] = x[:, 0]
        return out

    def rows(self, x):
        used = self.has_wrong.view(-1, *[1] * x.dim())
        return x[self.answer] - used * x[self.wrong]

    def pick(self, x):
        right, wrong = (x.gather(-1, token[..., None])[..., 0] for token in (self.answer, self.wrong))
        return right - self.has_wrong * wrong


class Effects:
    """What is measured of one model on tokens [prompts, S]; partner [samples, prompts]."""

    def __init__(self, m: Measurement, tokens, partner, targets=None):
        self.m, self.tokens, self.partner = m, tokens, partner
        self.targets = targets or NextTokens(tokens)
        self.clean = clean = m.run(tokens)
        self.s = self.targets.at(clean["scale"])
        self.u = m.norm.centre(m.norm.gamma * self.targets.rows(m.centred))
        self.prompts, self.positions = self.s.shape
        self.direction = self.u / self.s[..., None]
        self.logit = self.centred_logit(clean)
        self.embed = self.de(clean["embed"])
        self.heads, self.mlps = self.parts(clean)
        self.biases = torch.stack([
            self.de(m.written(clean, l, b.expand_as(clean["embed"]))) for l, b in enumerate(m.attention_bias)])
        self.constant = (m.norm.beta * self.targets.rows(m.centred)).sum(-1) + self.targets.rows(m.centred_bias)
        # The largest departures from what must hold.
        self.residuals = {"stream": self.stream_gap(), "completeness": self.completeness_gap(), "causes": 0.0}
        # Hugging Face's RMS norm computes in float32 whatever the model's type, so not to float64 rounding.
        largest = 1e-4 if m.write_norms[0] else 1e-9
        assert self.residuals["stream"] < largest, "the components must sum to the stream"
        assert self.residuals["completeness"] < 1e-4, "direct effects must sum to the logit"

    def centred_logit(self, seen):
        """[B, positions]: the target's logit less the mean logit, both before any soft-capping."""
        logits = self.targets.at(seen["logits"])
        cap = getattr(self.m.model.config.get_text_config(), "final_logit_softcapping", None)
        if cap:
            logits = cap * torch.atanh(logits / cap)
        return self.targets.pick(logits - logits.mean(-1, keepdim=True))

    def log_prob(self, seen):
        return self.targets.pick(self.targets.at(seen["logits"]).log_softmax(-1))

    def de(self, c):
        """Of c [B, S, D]."""
        return (self.targets.at(c) * self.direction).sum(-1)

    def parts(self, seen):
        """Direct effects of heads [layers, B, S, H] and MLPs [layers, B, S], by the clean scales of all norms."""
        m, directions = self.m, self.direction[:, :, None]
        heads = [
            (self.targets.at(m.written(self.clean, l, m.head_outputs(z, l))) * directions).sum(-1)
            for l, z in enumerate(seen["z"])]
        return torch.stack(heads), torch.stack([self.de(self.mlp_at_clean_scale(seen, l)) for l in range(m.layers)])

    def mlp_at_clean_scale(self, seen, layer):
        """What an MLP wrote, [B, S, D], as the clean scale of the norm on it would have it."""
        if not self.m.write_norms[layer]:
            return seen["mlp"][layer]
        ratio = seen["write_scales"][1][layer] / self.clean["write_scales"][1][layer]
        return seen["mlp"][layer] * ratio[..., None]

    def write_norm_changes(self, seen, heads, mlps):
        """What the scales of the norms on what attentions and MLPs write add to the logit, [2, layers, B, positions];
        `heads` and `mlps` as `parts` gives them. None in a model without such norms."""
        if not self.m.write_norms[0]:
            return None

        def ratio(which, layer):
            before, after = self.clean["write_scales"][which][layer], seen["write_scales"][which][layer]
            return self.targets.at(before / after)
        attention = [(heads[l].sum(-1) + self.biases[l]) * (ratio(0, l) - 1) for l in range(self.m.layers)]
        return torch.stack([
            torch.stack(attention), torch.stack([mlps[l] * (ratio(1, l) - 1) for l in range(self.m.layers)])])

    def stream_gap(self):
        m = self.m
        attention = [z @ w_o + bias for z, w_o, bias in zip(self.clean["z"], m.w_o, m.attention_bias)]
        total = self.clean["embed"] + sum(self.clean["mlp"])
        total = total + sum(m.written(self.clean, l, written) for l, written in enumerate(attention))
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
        outcomes = []
        for replacement in self.replacements(kind, layer, head):
            ablated = self.m.run(self.tokens, self.m.put_head(layer, head, replacement))
            heads, mlps = self.parts(ablated)
            d_heads, d_mlps = heads - self.heads, mlps - self.mlps
            d_heads[layer, ..., head] = 0
            own = self.heads[layer, ..., head], heads[layer, ..., head]
            norms = self.write_norm_changes(ablated, heads, mlps)
            outcomes.append(self.outcome(ablated, *own, d_heads, d_mlps, norms, layer))
        return average(outcomes)

    def outcome(self, ablated, before, after, d_heads, d_mlps, norms=None, own_layer=None):
        """Columns of `ablations`, of one ablated run: the ablated component's direct effects `before` and `after`, and
        how those of all others changed. In a model with norms on what parts write, `norms` is what these add by part,
        and `own_layer` that of the ablated head."""
        s, s2 = self.s, self.targets.at(ablated["scale"])
        residual = self.m.norm.centre(self.targets.at(ablated["residual"]))
        v = {}
        v["logit_change"] = self.centred_logit(ablated) - self.logit
        v["direct_effect"] = before
        v["ablated_direct_effect"] = after
        v["self_repair"] = v["logit_change"] - (v["ablated_direct_effect"] - v["direct_effect"])
        v["repair_attention"] = d_heads.sum((0, -1))
        v["repair_mlp"] = d_mlps.sum(0)
        v["repair_norm"] = (residual * self.u).sum(-1) * (1 / s2 - 1 / s)
        v["repair_by_erasers"] = (d_heads * (self.heads < 0)).sum((0, -1)) + (d_mlps * (self.mlps < 0)).sum(0)
        v["norm_scale"], v["ablated_norm_scale"] = s, s2
        v["ablated_residual_norm"] = residual.norm(dim=-1)
        gap = v["self_repair"] - v["repair_attention"] - v["repair_mlp"] - v["repair_norm"]
        if norms is not None:
            v["repair_write_norm"] = norms.sum((0, 1))
            v["repair_write_norm_own"] = torch.zeros_like(s) if own_layer is None else norms[0, own_layer]
            gap = gap - v["repair_write_norm"]
        self.residuals["causes"] = max(self.residuals["causes"], gap.abs().max().item())
        assert self.residuals["causes"] < 1e-4, "the causes must sum to the self-repair"
        return v

    def rows(self, key: dict, values: dict):
        """A part of a table: one row a measured position, with `key` the same in all."""
        n = self.prompts * self.positions
        columns = {k: [v] * n for k, v in key.items()}
        columns |= {"prompt": self.targets.prompt, "position": self.targets.position}
        return columns | {k: v.flatten().tolist() for k, v in values.items()}

    def clean_table(self):
        residual_norm = self.m.norm.centre(self.targets.at(self.clean["residual"])).norm(dim=-1)
        return [self.rows({}, {
            "logit": self.logit, "log_prob": self.log_prob(self.clean), "norm_scale": self.s,
            "residual_norm": residual_norm})]

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
            for p in range(min(prompts, self.prompts)) for s in range(0, self.tokens.shape[1], 5)]

    def write(self, out: Path, names, layers, logits_of):
        """`names` are the heads to ablate, `layers` those with direct effects, `logits_of` the prompts with logits."""
        out.mkdir(parents=True, exist_ok=True)
        write_table(out / "ablations.parquet", self.ablations_table(names))
        write_table(out / "clean.parquet", self.clean_table())
        write_table(out / "direct_effects.parquet", self.direct_effects_table(layers))
        write_table(out / "logits.parquet", self.logits_table(logits_of))


def average(outcomes):
    """The mean of dictionaries of tensors, name by name."""
    mean = {}
    for values in outcomes:
        for k, x in values.items():
            mean[k] = mean.get(k, 0) + x / len(outcomes)
    return mean


TEXT = ["ablation", "component", "hold", "repairer", "subset", "added"]
INTEGERS = [
    "layer", "head", "prompt", "position", "token", "tokens", "rank", "repairer_layer", "repairer_head", "neuron_layer",
    "expert", "neuron", "other_layer", "other_head", "sample", "partner", "answer", "wrong", "added_at",
]
TYPES = dict.fromkeys(TEXT, pa.string()) | dict.fromkeys(INTEGERS, pa.int32()) | {"multiple": pa.float64()}


def write_table(path: Path, parts):
    """All other columns are Float32."""
    columns = {name: [x for part in parts for x in part[name]] for name in parts[0]}
    table = pa.table({name: pa.array(values, TYPES.get(name, pa.float32())) for name, values in columns.items()})
    floats = [name for name in columns if name not in TYPES]
    pq.write_table(
        table, path, compression="zstd", compression_level=19, use_dictionary=[n for n in columns if n in TYPES],
        use_byte_stream_split=floats)
