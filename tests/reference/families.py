"""Makes a tiny checkpoint of every family of models and its expected values, in tests/fixtures/families/<name>/: what
`save_pretrained` writes, and `expected/`, measured as measurement.py says.

    python tests/reference/families.py            all of them
    python tests/reference/families.py phi opt    these

Prompts and resample partners are those of tests/fixtures/tiny-llama, whose tokenizer.json fits all of them too. The
weights are random, but the same on every run; they are measured as stored, in whatever type. This also removes the
`extended/` that some have; `reference.py extended all` makes it again.

Made with torch 2.15.0, transformers 5.23.0 (gpt_neox, stablelm and what comes after smollm3: 5.24.0), pyarrow 26.0.1.
"""

import json
import shutil
import sys
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

import mimo
from measurement import (
    WEIGHT_IS_GAMMA_LESS_1, Effects, Measurement, attention_implementation, bias_of, inputs, load)

FIXTURES = Path(__file__).parent.parent / "fixtures"
# Small enough that the fixtures are, while every layer still has heads before and after it to repair or be repaired.
COMMON = {
    "vocab_size": 384, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 0, "pad_token_id": None,
}
HEADS = ["L0H1", "L1H0", "L1H3", "L2H2"]


@dataclass(frozen=True)
class Family:
    model: str
    """The class in `transformers`."""
    settings: dict
    """Of its configuration, beyond COMMON."""
    differs: list[dict] = field(default_factory=list)
    """Other settings for which the same weights must give other logits: so no reader passes who overlooks these."""
    dtype: torch.dtype = torch.float32
    """What the weights are stored in."""
    mxfp4: bool = False
    """Whether experts are stored in MXFP4."""
    published: bool = False
    """Whether config.json has the keys of published checkpoints, from before transformers 5."""


def rope(theta, **more):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta} | more}


# Epsilons are large enough that a wrong one shows.
GATED = {"intermediate_size": 44, "num_key_value_heads": 2}
RMS, LAYER_NORM = {"rms_norm_eps": 0.01}, {"layer_norm_eps": 0.01}
# Wavelengths of a head's four frequencies: 6, 20, 63 and 199 positions. Those under 32 / 4 stay as they are, those over
# 32 / 1 are divided by the factor, and the one between is moved in between.
LLAMA3_ROPE = rope(
    100.0, rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=32)
# Six of a head's eight dimensions.
LONGROPE = rope(
    500.0, rope_type="longrope", partial_rotary_factor=0.75, short_factor=[1.0, 1.5, 2.5], long_factor=[2.0, 3.0, 5.0])


def yarn(**changes):
    return rope(20.0, rope_type="yarn", **{
        "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 4.0, "beta_slow": 0.5} | changes)


YARN = yarn()

FAMILIES = {
    "gpt2": Family(
        "GPT2LMHeadModel", {"n_inner": 44, "layer_norm_epsilon": 0.01},
        [{"activation_function": "gelu"}, {"layer_norm_epsilon": 1e-5}]),
    # Without n_inner, the MLP is four times as wide as the stream.
    "gpt2-stanford": Family(
        "GPT2LMHeadModel", {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
        [{"scale_attn_by_inverse_layer_idx": False}]),
    # Half of 8 dimensions is rotated: in two pairs, as the base of the frequencies has no effect on the first.
    "gpt_neox": Family(
        "GPTNeoXForCausalLM",
        LAYER_NORM | {"hidden_size": 32, "intermediate_size": 44} | rope(5000.0, partial_rotary_factor=0.5),
        [{"use_parallel_residual": False}, {"hidden_act": "gelu_new"}, {"layer_norm_eps": 1e-5},
         rope(5000.0, partial_rotary_factor=1.0), rope(50.0, partial_rotary_factor=0.5)],
        torch.float16, published=True),
    "gpt_neox-serial": Family(
        "GPTNeoXForCausalLM",
        {"intermediate_size": 44, "use_parallel_residual": False} | rope(5000.0, partial_rotary_factor=1.0),
        [{"use_parallel_residual": True}, rope(50.0, partial_rotary_factor=1.0)]),
    "opt": Family("OPTForCausalLM", {"ffn_dim": 44}, [{"activation_function": "gelu"}]),
    # The window is shorter than a prompt; the MLP is four times as wide as the stream.
    "gpt_neo": Family(
        "GPTNeoForCausalLM",
        {"layer_norm_epsilon": 0.01, "window_size": 5, "attention_types": [[["global", "local"], 1], [["global"], 1]]},
        [{"window_size": 6}, {"attention_types": [[["global"], 3]]}, {"attention_types": [[["local"], 3]]},
         {"activation_function": "gelu"}, {"layer_norm_epsilon": 1e-5}]),
    "llama3": Family(
        "LlamaForCausalLM",
        GATED | RMS | LLAMA3_ROPE
        | {"head_dim": 8, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        [rope(100.0), rope(100.0, rope_type="linear", factor=4.0), {"rms_norm_eps": 1e-6}]),
    "mistral": Family(
        "MistralForCausalLM", GATED | RMS | rope(5000.0) | {"sliding_window": 5},
        [{"sliding_window": None}, {"sliding_window": 6}, {"rms_norm_eps": 1e-6}]),
    "qwen2": Family(
        "Qwen2ForCausalLM", GATED | RMS | rope(5000.0), [rope(50.0), {"rms_norm_eps": 1e-6}], torch.bfloat16),
    "qwen3": Family(
        "Qwen3ForCausalLM", GATED | RMS | rope(5000.0) | {"head_dim": 8}, [rope(50.0), {"rms_norm_eps": 1e-6}]),
    "phi": Family(
        "PhiForCausalLM",
        LAYER_NORM | {"hidden_size": 32, "intermediate_size": 44} | rope(5000.0, partial_rotary_factor=0.5),
        [rope(5000.0, partial_rotary_factor=1.0), rope(50.0, partial_rotary_factor=0.5), {"layer_norm_eps": 1e-5},
         {"hidden_act": "gelu"}],
        torch.float16, published=True),
    "olmo": Family("OlmoForCausalLM", {"intermediate_size": 44} | rope(5000.0), [rope(50.0)]),
    "stablelm": Family(
        "StableLmForCausalLM",
        GATED | LAYER_NORM | {"hidden_size": 32, "use_qkv_bias": True} | rope(5000.0, partial_rotary_factor=0.5),
        [rope(5000.0, partial_rotary_factor=1.0), rope(50.0, partial_rotary_factor=0.5), {"layer_norm_eps": 1e-5}],
        torch.bfloat16),
    "stablelm-parallel": Family(
        "StableLmForCausalLM",
        GATED | {"hidden_size": 32, "use_parallel_residual": True} | rope(5000.0, partial_rotary_factor=0.5),
        [rope(5000.0, partial_rotary_factor=1.0), rope(50.0, partial_rotary_factor=0.5)],
        torch.bfloat16, published=True),
    "smollm3": Family(
        "SmolLM3ForCausalLM", GATED | RMS | rope(5000.0) | {"no_rope_layers": [1, 0, 1]},
        [{"no_rope_layers": [1, 1, 1]}, {"no_rope_layers": [0, 0, 0]}, {"rms_norm_eps": 1e-6}]),
    # Half of a head's dimensions is rotated, each against its neighbour.
    "gptj": Family(
        "GPTJForCausalLM", {"hidden_size": 32, "n_inner": 44, "rotary_dim": 4, "layer_norm_epsilon": 0.01},
        [{"rotary_dim": 8}, {"rotary_dim": 2}, {"activation_function": "gelu"}, {"layer_norm_epsilon": 1e-5}],
        torch.float16),
    # Two heads in each of the four parts of its one matrix for q, v and k.
    "codegen": Family(
        "CodeGenForCausalLM",
        {"hidden_size": 32, "num_attention_heads": 8, "n_inner": 44, "rotary_dim": 4, "layer_norm_epsilon": 0.01},
        [{"rotary_dim": 2}, {"activation_function": "gelu"}, {"layer_norm_epsilon": 1e-5}], torch.float16),
    # As Phi-4-mini: positions by the short factors, as no prompt is longer than the original context.
    "phi3": Family(
        "Phi3ForCausalLM",
        GATED | RMS | LONGROPE | {"hidden_size": 32, "tie_word_embeddings": True, "original_max_position_embeddings": 32},
        [rope(500.0), rope(500.0, partial_rotary_factor=0.75), {"original_max_position_embeddings": 24},
         {"original_max_position_embeddings": 8}, {"rms_norm_eps": 1e-6}],
        torch.bfloat16),
    # As Phi-3-mini-4k.
    "phi3-mini": Family(
        "Phi3ForCausalLM", GATED | RMS | rope(5000.0) | {"hidden_size": 32, "sliding_window": 5},
        [rope(50.0), rope(5000.0, partial_rotary_factor=0.5), {"sliding_window": None}, {"sliding_window": 6},
         {"rms_norm_eps": 1e-6}],
        torch.bfloat16, published=True),
    # As Qwen2.5 with a longer context. The frequencies are 1/1, 1/2.1, 1/4.5 and 1/9.5 radians a position; the first
    # stays as it is, the last is divided by the factor.
    "qwen2-yarn": Family(
        "Qwen2ForCausalLM", GATED | RMS | {"hidden_size": 32} | YARN,
        [rope(20.0), yarn(factor=2.0), yarn(beta_fast=1.0), yarn(beta_slow=2.0), yarn(truncate=False),
         yarn(attention_factor=1.0), yarn(mscale=2.0, mscale_all_dim=1.0), yarn(original_max_position_embeddings=32)],
        torch.bfloat16, published=True),
    "starcoder2": Family(
        "Starcoder2ForCausalLM",
        GATED | {"norm_epsilon": 0.01, "sliding_window": 5} | rope(5000.0),
        [rope(50.0), {"sliding_window": None}, {"sliding_window": 6}, {"hidden_act": "gelu"}, {"norm_epsilon": 1e-5}]),
    "granite": Family(
        "GraniteForCausalLM",
        GATED | RMS | rope(5000.0) | {
            "embedding_multiplier": 3.0, "attention_multiplier": 0.3, "residual_multiplier": 0.4, "logits_scaling": 2.5,
            "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        [rope(50.0), {"embedding_multiplier": 1.0}, {"attention_multiplier": 24**-0.5}, {"residual_multiplier": 1.0},
         {"logits_scaling": 1.0}, {"rms_norm_eps": 1e-6}]),
    "gpt_bigcode": Family(
        "GPTBigCodeForCausalLM", {"n_inner": 44, "layer_norm_epsilon": 0.01},
        [{"activation_function": "gelu"}, {"scale_attn_weights": False}, {"layer_norm_epsilon": 1e-5}]),
    # Without n_inner, the MLP is four times as wide as the stream.
    "gpt_bigcode-multi-head": Family(
        "GPTBigCodeForCausalLM", {"multi_query": False, "scale_attn_weights": False}, [{"scale_attn_weights": True}],
        torch.float16),
    # Three pairs of neighbours in each head.
    "cohere": Family(
        "CohereForCausalLM",
        GATED | {"layer_norm_eps": 0.01, "logit_scale": 0.3, "attention_bias": True} | rope(5000.0),
        [rope(50.0), {"logit_scale": 1.0}, {"layer_norm_eps": 1e-5}]),
    "nemotron": Family(
        "NemotronForCausalLM",
        GATED | {"hidden_size": 32, "norm_eps": 0.01, "attention_bias": True, "mlp_bias": True}
        | rope(5000.0, partial_rotary_factor=0.5),
        [rope(50.0, partial_rotary_factor=0.5), rope(5000.0, partial_rotary_factor=1.0), {"hidden_act": "relu"},
         {"norm_eps": 1e-5}],
        torch.bfloat16, published=True),
    # As Falcon-7B, Falcon-40B, and with the parts one after the other.
    "falcon": Family(
        "FalconForCausalLM", {"ffn_hidden_size": 44, "layer_norm_epsilon": 0.01} | rope(5000.0),
        [rope(50.0), {"activation": "gelu_new"}, {"layer_norm_epsilon": 1e-5}], published=True),
    "falcon-new": Family(
        "FalconForCausalLM",
        {"hidden_size": 32, "ffn_hidden_size": 44, "new_decoder_architecture": True, "num_kv_heads": 2}
        | rope(5000.0),
        [rope(50.0), {"activation": "gelu_new"}], torch.bfloat16),
    "falcon-serial": Family(
        "FalconForCausalLM", {"multi_query": False, "parallel_attn": False, "bias": True} | rope(5000.0),
        [rope(50.0), {"activation": "gelu_new"}], torch.bfloat16),
    "falcon-alibi": Family(
        "FalconForCausalLM", {"multi_query": False, "parallel_attn": False, "bias": True, "alibi": True},
        [{"alibi": False}], torch.bfloat16),
    # Numbers of heads that are no power of two; the MLP is four times as wide as the stream.
    "bloom": Family(
        "BloomForCausalLM", {"num_attention_heads": 6, "layer_norm_epsilon": 0.01}, [{"layer_norm_epsilon": 1e-5}],
        torch.float16),
    "mpt": Family(
        "MptForCausalLM",
        {"num_attention_heads": 6, "layer_norm_epsilon": 0.01, "max_seq_len": 64,
         "attn_config": {"softmax_scale": 0.3, "alibi": True}},
        [{"attn_config": {}}, {"layer_norm_epsilon": 1e-5}], torch.bfloat16),
    "mimo": Family(
        "MiMoForCausalLM", GATED | RMS | rope(5000.0) | {"head_dim": 6, "num_nextn_predict_layers": 1},
        [rope(50.0), {"rms_norm_eps": 1e-6}], torch.bfloat16, published=True),
    "ministral": Family(
        "MinistralForCausalLM",
        GATED | RMS | rope(5000.0) | {
            "head_dim": 8, "sliding_window": 5,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        [rope(50.0), {"sliding_window": 6}, {"layer_types": ["full_attention"] * 3},
         {"layer_types": ["sliding_attention"] * 3}, {"rms_norm_eps": 1e-6}]),
    "gemma": Family(
        "GemmaForCausalLM", GATED | RMS | rope(5000.0) | {"head_dim": 8},
        [rope(50.0), {"hidden_act": "silu"}, {"rms_norm_eps": 1e-6}]),
}


# Heads of 8 dimensions turn in four pairs. Windows are shorter than a prompt; the soft-caps are low enough to show.
FAMILIES |= {
    "gemma2": Family(
        "Gemma2ForCausalLM",
        GATED | RMS | rope(5000.0) | {
            "head_dim": 8, "query_pre_attn_scalar": 12, "sliding_window": 5, "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 4.0, "hidden_activation": "gelu_pytorch_tanh"},
        [rope(50.0), {"rms_norm_eps": 1e-6}, {"query_pre_attn_scalar": 8}, {"sliding_window": 6},
         {"attn_logit_softcapping": None}, {"attn_logit_softcapping": 1.6}, {"final_logit_softcapping": None},
         {"final_logit_softcapping": 5.0}, {"hidden_activation": "gelu"},
         {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}]),
    "gemma3": Family(
        "Gemma3ForCausalLM",
        GATED | RMS | {
            "num_key_value_heads": 1, "head_dim": 8, "query_pre_attn_scalar": 12, "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 50.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0}}},
        [{"rms_norm_eps": 1e-6}, {"query_pre_attn_scalar": 8}, {"sliding_window": 6}, {"hidden_activation": "silu"},
         {"layer_types": ["full_attention"] * 3},
         {"rope_parameters": {
             "full_attention": {"rope_type": "default", "rope_theta": 50.0},
             "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0}}},
         {"rope_parameters": {
             "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 50.0},
             "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}}}],
        torch.bfloat16),
    "cohere2": Family(
        "Cohere2ForCausalLM",
        GATED | LAYER_NORM | rope(5000.0) | {
            "sliding_window": 5, "logit_scale": 0.5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        [rope(50.0), {"layer_norm_eps": 1e-5}, {"sliding_window": 6}, {"logit_scale": 1.0},
         {"layer_types": ["full_attention"] * 3}, {"layer_types": ["sliding_attention"] * 3}]),
    "gemma3-with-images": Family(
        "Gemma3ForConditionalGeneration",
        GATED | RMS | {
            "head_dim": 8, "query_pre_attn_scalar": 12, "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        [{"query_pre_attn_scalar": 8}, {"sliding_window": 6}], torch.bfloat16),
    "glm4": Family(
        "Glm4ForCausalLM", GATED | RMS | {"head_dim": 8} | rope(5000.0, partial_rotary_factor=0.5),
        [rope(50.0, partial_rotary_factor=0.5), rope(5000.0, partial_rotary_factor=1.0), {"rms_norm_eps": 1e-6}],
        torch.bfloat16),
    "olmo2": Family(
        "Olmo2ForCausalLM", GATED | RMS | rope(5000.0) | {"attention_bias": True},
        [rope(50.0), {"rms_norm_eps": 1e-6}]),
    "olmo3": Family(
        "Olmo3ForCausalLM",
        GATED | RMS | {
            "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}}},
        [{"rms_norm_eps": 1e-6}, {"sliding_window": 6}, {"layer_types": ["full_attention"] * 3}]),
}


FAMILIES |= {
    "apertus": Family(
        "ApertusForCausalLM",
        GATED | RMS | LLAMA3_ROPE | {"hidden_size": 32}, [rope(100.0), {"rms_norm_eps": 1e-6}], torch.bfloat16),
}

# Routers choose other experts at other positions; every expert is chosen somewhere.
EXPERTS = GATED | RMS | rope(5000.0) | {"intermediate_size": 20}
FAMILIES |= {
    "mixtral": Family(
        "MixtralForCausalLM", EXPERTS | {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
        [rope(50.0), {"rms_norm_eps": 1e-6}, {"num_experts_per_tok": 1}, {"num_experts_per_tok": 3},
         {"sliding_window": 5}], torch.bfloat16),
    "olmoe": Family(
        "OlmoeForCausalLM", EXPERTS | {"num_experts": 6, "num_experts_per_tok": 3},
        [rope(50.0), {"rms_norm_eps": 1e-6}, {"num_experts_per_tok": 2}, {"norm_topk_prob": True}]),
    "qwen2_moe": Family(
        "Qwen2MoeForCausalLM",
        EXPERTS | {"moe_intermediate_size": 20, "shared_expert_intermediate_size": 28, "num_experts": 4,
                   "num_experts_per_tok": 2},
        [rope(50.0), {"rms_norm_eps": 1e-6}, {"num_experts_per_tok": 1}, {"norm_topk_prob": True},
         {"use_sliding_window": True, "sliding_window": 5}], torch.bfloat16),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        EXPERTS | {"head_dim": 8, "moe_intermediate_size": 20, "num_experts": 5, "num_experts_per_tok": 2,
                   "norm_topk_prob": True},
        [rope(50.0), {"rms_norm_eps": 1e-6}, {"num_experts_per_tok": 1}, {"norm_topk_prob": False},
         {"use_sliding_window": True, "sliding_window": 5}]),
    "granitemoe": Family(
        "GraniteMoeForCausalLM",
        EXPERTS | {
            "num_local_experts": 4, "num_experts_per_tok": 2, "embedding_multiplier": 3.0, "attention_multiplier": 0.3,
            "residual_multiplier": 0.4, "logits_scaling": 2.5, "tie_word_embeddings": True},
        [rope(50.0), {"embedding_multiplier": 1.0}, {"attention_multiplier": 24**-0.5}, {"residual_multiplier": 1.0},
         {"logits_scaling": 1.0}, {"rms_norm_eps": 1e-6}, {"num_experts_per_tok": 1}]),
    # As GPT-OSS, whose windows are in every second layer; clamped often enough to show.
    "gpt_oss": Family(
        "GptOssForCausalLM",
        EXPERTS | yarn() | {
            "head_dim": 8, "sliding_window": 5, "num_local_experts": 4, "num_experts_per_tok": 2, "swiglu_limit": 1.5},
        [rope(20.0), {"rms_norm_eps": 1e-6}, {"num_experts_per_tok": 1}, {"sliding_window": 6}, {"swiglu_limit": 7.0},
         {"swiglu_alpha": 1.0}, {"layer_types": ["full_attention"] * 3}], torch.bfloat16),
    # Experts in blocks of 32 numbers of 4 bits, as they are published.
    "gpt_oss-mxfp4": Family(
        "GptOssForCausalLM",
        EXPERTS | yarn() | {
            "hidden_size": 32, "intermediate_size": 32, "head_dim": 8, "sliding_window": 5, "num_local_experts": 4,
            "num_experts_per_tok": 2},
        [{"num_experts_per_tok": 1}, {"sliding_window": 6}], torch.bfloat16, mxfp4=True),
}


def build(family: Family, **changes):
    kind = getattr(mimo if family.model.startswith("MiMo") else transformers, family.model)
    settings = COMMON | family.settings | changes
    if "text_config" in kind.config_class.sub_configs:
        # A model that reads images too; only its text model is measured.
        vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
                  "image_size": 4, "patch_size": 2}
        settings = {"text_config": settings, "vision_config": vision, "mm_tokens_per_image": 1, "pad_token_id": None}
    return kind(kind.config_class(**settings))


@torch.no_grad()
def randomise(model, seed):
    """Nothing stays at zero or one, and the weights are large enough that heads matter to each other."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            random = torch.randn(p.shape, generator=generator)
            if p.dim() > 1:
                transposed = isinstance(module, Conv1D) or "GptOssExperts" in type(module).__name__
                fan_in = p.shape[-2] if transposed else p.shape[-1]
                p.copy_(random * (1.6 / fan_in**0.5))
            elif name == "weight" and type(module).__name__ not in WEIGHT_IS_GAMMA_LESS_1:
                p.copy_(1 + 0.3 * random)
            else:
                p.copy_(0.3 * random)


def published_keys(config: dict):
    """transformers 5 writes `dtype` and `rope_parameters`; it reads what came before too."""
    config["torch_dtype"] = config.pop("dtype")
    rotary = config.pop("rope_parameters")
    scaled = {key: rotary.pop(key) for key in list(rotary) if key not in ("rope_theta", "partial_rotary_factor")}
    if scaled["rope_type"] != "default":
        config["rope_scaling"] = {"type": scaled.pop("rope_type")} | scaled
    neox = config["model_type"] == "gpt_neox"
    names = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"} if neox else {}
    return config | {names.get(key, key): value for key, value in rotary.items()}


def make(name: str, folder: Path):
    family = FAMILIES[name]
    model = build(family)
    randomise(model, zlib.crc32(name.encode()))
    model.to(family.dtype).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if family.mxfp4:
        quantize_experts(folder, zlib.crc32(name.encode()))
    if family.published:
        config = json.loads((folder / "config.json").read_text())
        published = json.dumps(published_keys(config), indent=2, sort_keys=True) + "\n"
        (folder / "config.json").write_text(published)


def quantize_experts(folder: Path, seed):
    """Random bits in place of the experts' matrices."""
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        shape = (experts, outputs, inputs // 32)
        tensors[f"{name}_blocks"] = torch.randint(256, (*shape, 16), generator=generator).to(torch.uint8)
        # Powers of two from 1/16 to 1/4.
        tensors[f"{name}_scales"] = torch.randint(123, 126, shape, generator=generator).to(torch.uint8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


@torch.no_grad()
def logits_with(model, tokens, hooks=()):
    """hooks: pairs of a module and a forward hook."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    logits = model(input_ids=tokens, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return logits


def check(name: str, folder: Path, e: Effects):
    """The measurement against other ways to the same; returns the largest differences."""
    m, tokens, gaps = e.m, e.tokens, {}

    # b_V' is z where all that attention reads is β.
    z = [None] * m.layers
    hooks = []
    for l in range(m.layers):
        def keep(_, args, __, l=l):
            z[l] = args[0]
        hooks.append((m.part(l, "output"), keep))
        if m.layout.attention_norm is None:
            values = m.part(l, "attention").v_proj
            hooks.append((values, lambda of, _, output: bias_of(of, output.shape[-1]).expand_as(output)))
            continue
        norm = m.part(l, "attention_norm")
        # γ ⊙ x̂ + β is β where γ is 0, but not every family's norm lets its γ be changed: so its output is.
        beta = m.norm_of(norm).beta
        hooks.append((norm, lambda _, __, output, beta=beta: beta.expand_as(output)))
    logits_with(m.model, tokens, hooks)
    has_sinks = hasattr(m.part(0, "attention"), "sinks")  # then it is part of z
    gaps["value_bias"] = 0 if has_sinks else max((z[l] - m.value_bias[l]).abs().max().item() for l in range(m.layers))
    assert gaps["value_bias"] < 1e-6, f"{name}: z must be the value bias where attention reads β"

    # An ablation to zero takes the head's output out of what attention writes.
    for head in HEADS:
        layer, h = map(int, head[1:].split("H"))
        gone = e.clean["z"][layer][..., m.span(h)] @ m.w_o[layer][m.span(h)] / m.multiplier
        edited = logits_with(m.model, tokens, [(m.part(layer, "output"), lambda _, __, out, gone=gone: out - gone)])
        ablated = m.run(tokens, m.put_head(layer, h, 0))["logits"]
        gaps["zero"] = max(gaps.get("zero", 0), (edited - ablated).abs().max().item())
    assert gaps["zero"] < 1e-4, f"{name}: ablating z must be removing the head's output"

    # The model in float32, with nothing hooked and nothing set.
    plain = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32,
        attn_implementation=attention_implementation(m.model.config.to_dict())).eval()
    gaps["float32"] = (logits_with(plain, tokens) - e.clean["logits"]).abs().max().item()
    assert gaps["float32"] < 1e-3, f"{name}: the hooks must not change the model"

    # The base of the frequencies has no effect on the first pair of dimensions.
    pairs = [len(buffer) for key, buffer in plain.named_buffers() if key.endswith("inv_freq")]
    assert all(n > 1 for n in pairs), f"{name}: more than one pair of dimensions must be rotated"

    # Every setting changes logits far more than float32 does.
    family = FAMILIES[name]
    for changes in [{}, *family.differs]:
        other = build(family, **changes).eval()
        other.load_state_dict(plain.state_dict())
        change = (logits_with(other, tokens) - e.clean["logits"]).abs().max().item()
        if changes:
            gaps["least change"] = min(gaps.get("least change", change), change)
            assert change > 20 * gaps["float32"], f"{name}: {changes} changes logits by {change} only"
        else:
            assert change < 1e-3, f"{name}: what is stored must be the family's"
    return gaps


def main(names):
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    expected = FIXTURES / "tiny-llama" / "expected"
    tokens, partner = inputs(*(pq.read_table(expected / f"{table}.parquet") for table in ["tokens", "pairs"]))
    for name in names:
        folder = FIXTURES / "families" / name
        shutil.rmtree(folder, ignore_errors=True)
        make(name, folder)
        effects = Effects(Measurement(load(folder)), tokens, partner)
        gaps = check(name, folder, effects)
        effects.write(folder / "expected", HEADS, layers=range(3), logits_of=1)
        print(name, *(f"{k} {v:.1e}" for k, v in (effects.residuals | gaps).items()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or FAMILIES)
