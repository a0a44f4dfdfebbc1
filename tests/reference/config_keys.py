"""What transformers makes of a changed key of config.json: writes tests/fixtures/config-keys/<name>.json.

    pip install torch transformers
    python tests/reference/config_keys.py            all fixtures of tests/fixtures/families
    python tests/reference/config_keys.py phi opt    these; -v prints every change and why it is refused

One change at a time is made to the config.json of a fixture: a key is dropped, set to null, to a value of another type,
to another value, or added, in its old and its new spelling. Keys on which no number depends are set to values of other
types. transformers loads the same weights with it, and the logits of one prompt are stored; or "refused", where
transformers raises an error or finds no weights for what the configuration asks for. tests/suite/config_keys.rs makes
the same changes.

Made with torch 2.15.0, transformers 5.24.0.
"""

import dataclasses
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
import transformers

import mimo  # so that transformers knows it  # noqa: F401
from measurement import attention_implementation

FIXTURES = Path(__file__).parent.parent / "fixtures"
OUT = FIXTURES / "config-keys"
# Longer than the windows of the fixtures.
TOKENS = [(37 * i + 11) % 380 + 2 for i in range(24)]
# What is stored: these positions, and every STEP-th token of the vocabulary.
POSITIONS, STEP = [11, 23], 17
# Logits that differ by less than SAME are the same. What is stored of those that differ must differ by more than FAR.
SAME, FAR = 1e-5, 3e-4
DROPPED = object()
# Where a model that reads images too has the configuration of its text model: there the keys are changed.
TEXT = "text_config"
VERBOSE = "-v" in sys.argv

LINEAR = {"rope_type": "linear", "factor": 2.0}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CONTEXT = {"original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
# Of heads with three and with four pairs of dimensions.
LONGROPE_3 = {"rope_type": "longrope", "short_factor": [1.0, 1.5, 2.5], "long_factor": [2.0, 3.0, 5.0]}
LONGROPE_4 = {"rope_type": "longrope", "short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [2.0, 3.0, 4.0, 5.0]}
LAYERS = ["full_attention", "sliding_attention", "full_attention"]

# Set in every fixture, whether its family knows the key or not. Where a key has this very value already, nothing is
# tested twice.
SETTINGS = {
    # Sizes, in all spellings.
    "hidden_size": [24, 32, 48], "n_embd": [24, 48], "num_attention_heads": [2, 4, 8], "n_head": [2], "num_heads": [2],
    "num_hidden_layers": [2, 3, 4], "n_layer": [2], "num_layers": [2], "num_key_value_heads": [1, 2, 4, None],
    "head_dim": [4, 6, 8, None], "intermediate_size": [44, 48, None], "n_inner": [48], "ffn_dim": [48],
    "vocab_size": [383], "max_position_embeddings": [32, None], "n_positions": [32], "n_ctx": [32],
    "max_sequence_length": [32], "max_seq_len": [32, 16, None],
    "attn_config": [
        None, {}, {"softmax_scale": None}, {"softmax_scale": 0.5}, {"clip_qkv": 0.5}, {"clip_qkv": None},
        {"alibi": False}, {"alibi_bias_max": 4}, {"qk_ln": True}, {"prefix_lm": True},
        {"attn_type": "multiquery_attention"}, {"softmax_scale": "text"}, {"clip_qkv": "text"},
    ],
    "apply_residual_connection_post_layernorm": [True, False], "slow_but_exact": [True],
    # Rotary positions.
    "rope_theta": [50.0, 50, None, "50"], "rotary_emb_base": [50.0, 50, None],
    "rotary_pct": [1.0, 0.5, 0.4, 0.25, None],
    "partial_rotary_factor": [1.0, 0.5, 0.4, None], "rotary_dim": [2, 4, 8, 3, 0, -2],
    "rope_scaling": [
        None, {}, [], "linear", {"rope_type": "default"}, {"rope_theta": 50.0}, {"factor": 2.0},
        {"type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 2}, {"type": "linear"},
        {"type": "default", "rope_type": "linear", "factor": 2.0}, {"rope_type": None, "type": "linear", "factor": 2.0},
        {"rope_type": "linear", "factor": 2.0, "rope_theta": 50.0}, {"rope_type": "linear", "factor": None},
        {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5},
        {"rope_type": "dynamic", "factor": 2.0}, {"rope_type": "yarn", "factor": 2.0}, {"rope_type": "proportional"},
        {"rope_type": "su", "factor": 2.0}, LLAMA3, LLAMA3 | CONTEXT, LLAMA3 | {"low_freq_factor": None},
        {key: value for key, value in LLAMA3.items() if key != "high_freq_factor"} | CONTEXT,
        {"rope_type": "dynamic"}, {"rope_type": "dynamic", "factor": None}, {"type": "dynamic", "factor": 4},
        {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 50.0},
        YARN, YARN | {"rope_theta": 50.0}, YARN | {"attention_factor": 0.7}, YARN | {"beta_fast": 4.0},
        YARN | {"beta_fast": 4.0, "beta_slow": 0.5}, YARN | {"beta_fast": None, "beta_slow": None},
        YARN | {"mscale": 2.0, "mscale_all_dim": 0.5}, YARN | {"mscale": 2.0}, YARN | {"truncate": False},
        YARN | {"beta_fast": 1.0, "truncate": False}, YARN | {"factor": None}, YARN | {"factor": 1},
        {"rope_type": "yarn"}, YARN | {"attention_factor": None, "mscale": None}, YARN | {"factor": 0.5},
        YARN | {"original_max_position_embeddings": None}, YARN | {"original_max_position_embeddings": 32},
        LONGROPE_3, LONGROPE_4, LONGROPE_3 | CONTEXT, LONGROPE_4 | CONTEXT,
        LONGROPE_3 | CONTEXT | {"type": "su", "rope_type": "su"}, LONGROPE_4 | CONTEXT | {"rope_type": "su"},
        *(of | CONTEXT | {key: value} for of in [LONGROPE_3, LONGROPE_4] for key, value in [
            ("factor", 4.0), ("factor", 0.5), ("factor", None), ("attention_factor", 0.7), ("attention_factor", None),
            ("rope_theta", 50.0), ("short_factor", None), ("short_factor", [1.0, 2.0]), ("long_factor", [1.0, 2.0]),
            ("long_factor", None), ("original_max_position_embeddings", 16),
            ("original_max_position_embeddings", 24)]),
        {key: value for key, value in LONGROPE_3.items() if key != "long_factor"} | CONTEXT,
    ],
    "rope_parameters": [
        None, {}, [], "default", {"rope_type": "default"}, {"rope_theta": 50.0}, {"rope_theta": None},
        {"rope_type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0, "rope_theta": 50.0},
        {"type": "linear", "factor": 2.0}, {"rope_type": "default", "partial_rotary_factor": 1.0},
        {"rope_type": "default", "partial_rotary_factor": 0.5}, {"rope_type": "default", "partial_rotary_factor": None},
        {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.25},
        {"full_attention": {"rope_type": "default", "rope_theta": 50.0}}, LLAMA3, LLAMA3 | CONTEXT,
    ],
    "original_max_position_embeddings": [16, 24, None], "no_rope_layers": [[1, 1, 0], [0, 0, 0, 1], [1, 0], [], None],
    "no_rope_layer_interval": [2, 1, 0],
    # Attention.
    "is_causal": [False, True, None, 0], "sliding_window": [3, 0, None, 3.0], "use_sliding_window": [True, False, None],
    "max_window_layers": [0, 1, 3, None], "attention_chunk_size": [4], "window_size": [3, 256, None],
    "layer_types": [
        LAYERS, ["full_attention"] * 3, ["attention"] * 3, LAYERS[:2], ["linear_attention"] * 3,
        ["sliding_attention"] * 3, "full_attention", None,
    ],
    "attention_types": [[[["local"], 3]], [[["global"], 3]], [[["global"], 2]], [], None],
    "attention_layers": [["local"] * 3, ["global"] * 3, ["global"] * 2, None],
    "scale_attn_weights": [False, True, None], "scale_attn_by_inverse_layer_idx": [True, False],
    "reorder_and_upcast_attn": [True, False], "attention_multiplier": [0.5, 2, 0, None], "query_pre_attn_scalar": [64],
    "attn_logit_softcapping": [5.0], "clip_qkv": [0.5, None], "qk_layernorm": [True, False, None],
    "use_qk_norm": [True, False], "qk_norm": [True], "alibi": [True, False, None],
    "parallel_attn": [True, False, None], "new_decoder_architecture": [True, False, None],
    "num_ln_in_parallel_attn": [1, 2, 3, None], "num_kv_heads": [1, 2, 4, None], "attention_dropout": [0.5],
    "use_bidirectional_attention": [True, False, None], "add_cross_attention": [True], "is_decoder": [True, False],
    "is_encoder_decoder": [True], "pruned_heads": [{"0": [1]}], "multi_query": [True, False, None], "pretraining_tp": [2],
    "attention_softmax_in_fp32": [False], "num_nextn_predict_layers": [0, 1, 2], "use_mrope": [True],
    # Norms, activations, biases.
    "rms_norm_eps": [0.1, 1, None, "0.1"], "layer_norm_eps": [0.1, 1, None], "layer_norm_epsilon": [0.1, 1, None],
    "norm_eps": [0.1, 1, None], "norm_epsilon": [0.1, 1, None],
    "hidden_act": [
        "silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu", "relu2", "tanh", "no such", None,
    ],
    "activation": ["silu", "gelu", "gelu_new", "relu", "relu2", "quick_gelu", "no such", None],
    "hidden_activation": ["relu"],
    "activation_function": ["silu", "gelu", "gelu_new", "relu", "quick_gelu", None],
    "attention_bias": [True, False, None], "mlp_bias": [True, False, None], "use_qkv_bias": [True, False],
    "use_bias": [True, False, None], "bias": [True, False, None], "enable_bias": [False, True], "qkv_bias": [False], "lm_head_bias": [True],
    "layer_norm_elementwise_affine": [False, True], "do_layer_norm_before": [False, True],
    "_remove_final_layer_norm": [True, False], "use_parallel_residual": [True, False, None],
    "parallel_residual": [True],
    # The ends.
    "tie_word_embeddings": [True, False, None, 1], "tie_encoder_decoder": [True],
    "word_embed_proj_dim": [12, 24, 32, None],
    "embedding_multiplier": [2.0, 2, 0, None], "logits_scaling": [2.0, 2, 0, None], "logit_scale": [2.0, 1, 0.0, None],
    "residual_multiplier": [2.0, 2, 0, None], "ffn_hidden_size": [48, None], "n_embed": [24, 48, None],
    "final_logit_softcapping": [1.0], "scale_embedding": [True], "embedding_scale": [2.0],
    # Of every configuration.
    "architectures": [None, [], ["GPT2LMHeadCustomModel"], ["BertModel"], "unknown"], "model_type": ["no such", None],
    "per_layer_config": [None, {}, {"1": {"intermediate_size": 12}}, {"1": {"rms_norm_eps": 0.5}}],
    "quantization_config": [None, {"quant_method": "bitsandbytes", "load_in_8bit": True}],
    "transformers_weights": [None, "other.safetensors"], "text_config": [None, {"hidden_size": 12}],
    "dtype": ["float16"], "torch_dtype": ["bfloat16"], "use_cache": [False], "output_attentions": [True],
    "num_labels": [5],
    "chunk_size_feed_forward": [1], "num_local_experts": [4], "num_experts": [4], "auto_map": [{}],
}

# Of any type in transformers: it reads none of them here.
OF_ANY_TYPE = ["architectures", "dtype", "torch_dtype"]
OF_EVERY_FAMILY = {field.name for field in dataclasses.fields(transformers.PreTrainedConfig)}

# Several keys at once, where one decides what the other means.
TOGETHER = [
    {"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
    {"rope_scaling": LINEAR, "rope_parameters": {}},
    {"rope_scaling": {}, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 50.0}},
    {"rope_scaling": None, "rope_parameters": {}, "rope_theta": 50.0},
    {"rope_parameters": {}, "rope_theta": 50.0}, {"rope_parameters": {}, "rotary_emb_base": 50.0},
    {"rope_parameters": {"rope_theta": 500.0}, "rope_theta": 50.0},
    {"rope_parameters": {"rope_theta": 500.0}, "rotary_emb_base": 50.0},
    {"rope_parameters": DROPPED, "rope_theta": 50.0}, {"rope_parameters": DROPPED, "rotary_emb_base": 50.0},
    {"rope_parameters": DROPPED, "rope_theta": 50.0, "rotary_emb_base": 500.0},
    {"rotary_emb_base": DROPPED, "rope_theta": 50.0}, {"rotary_pct": DROPPED, "partial_rotary_factor": 1.0},
    {"rope_parameters": {"partial_rotary_factor": 1.0}, "partial_rotary_factor": 0.5},
    {"rope_parameters": {"partial_rotary_factor": 1.0}, "rotary_pct": 0.5},
    {"rope_parameters": DROPPED, "partial_rotary_factor": 1.0, "rope_theta": 50.0},
    {"rope_parameters": LLAMA3 | CONTEXT, "original_max_position_embeddings": 16},
    {"rope_parameters": LLAMA3, "original_max_position_embeddings": 16},
    {"rope_scaling": LLAMA3 | CONTEXT, "original_max_position_embeddings": 16, "rope_theta": 50.0},
    {"rope_scaling": LLAMA3, "max_position_embeddings": 48},
    {"rope_scaling": LLAMA3 | CONTEXT, "original_max_position_embeddings": None},
    {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "original_max_position_embeddings": 16},
    {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1, "layer_types": DROPPED},
    {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": DROPPED, "layer_types": DROPPED},
    {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0, "layer_types": None},
    {"use_sliding_window": True, "sliding_window": DROPPED, "max_window_layers": 0, "layer_types": DROPPED},
    {"use_sliding_window": True, "sliding_window": 3, "layer_types": LAYERS},
    {"use_sliding_window": True, "sliding_window": 3, "layer_types": ["attention"] * 3},
    {"use_sliding_window": True, "sliding_window": None, "layer_types": LAYERS},
    {"use_sliding_window": False, "sliding_window": 3, "layer_types": LAYERS},
    {"use_sliding_window": True, "sliding_window": 3, "layer_types": DROPPED, "no_rope_layers": DROPPED,
     "no_rope_layer_interval": 2},
    {"use_sliding_window": True, "sliding_window": 3, "layer_types": ["linear_attention"] * 3},
    {"sliding_window": 3, "layer_types": LAYERS}, {"sliding_window": 3, "layer_types": None},
    {"sliding_window": None, "layer_types": LAYERS}, {"sliding_window": None, "layer_types": None},
    {"sliding_window": 3, "layer_types": LAYERS, "head_dim": DROPPED},
    {"no_rope_layers": DROPPED, "no_rope_layer_interval": 2},
    {"no_rope_layers": None, "no_rope_layer_interval": DROPPED},
    {"attention_layers": DROPPED, "attention_types": [[["local"], 3]]},
    {"attention_layers": DROPPED, "attention_types": [[["global", "local"], 1], [["local"], 1]]},
    {"attention_layers": DROPPED, "attention_types": None}, {"attention_layers": DROPPED, "attention_types": DROPPED},
    {"attention_layers": ["local"] * 3, "attention_types": DROPPED},
    {"attention_layers": ["local", "global", "else"], "attention_types": [[["global"], 3]]},
    {"n_embd": DROPPED, "hidden_size": 24}, {"n_head": DROPPED, "num_attention_heads": 4},
    {"n_layer": DROPPED, "num_hidden_layers": 3}, {"n_positions": DROPPED, "max_position_embeddings": 64},
    {"num_heads": DROPPED, "num_attention_heads": 4}, {"num_layers": DROPPED, "num_hidden_layers": 3},
    {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
    {"num_key_value_heads": 4, "num_attention_heads": 8}, {"hidden_size": 24, "n_embd": 48},
    {"rope_scaling": YARN, "original_max_position_embeddings": 32},
    {"rope_scaling": YARN, "max_position_embeddings": 48}, {"rope_scaling": YARN | {"factor": None},
     "max_position_embeddings": 48}, {"rope_parameters": YARN | {"rope_theta": 50.0}, "rope_scaling": None},
    {"rope_scaling": LONGROPE_3, "original_max_position_embeddings": 32},
    {"rope_scaling": LONGROPE_4, "original_max_position_embeddings": 32},
    {"rope_scaling": LONGROPE_4 | CONTEXT, "original_max_position_embeddings": 24},
    {"rope_scaling": LONGROPE_4 | CONTEXT, "original_max_position_embeddings": 16},
    {"rope_scaling": LONGROPE_3 | CONTEXT, "partial_rotary_factor": 0.75},
    {"rope_scaling": LONGROPE_4 | CONTEXT, "max_position_embeddings": 32},
    {"rope_scaling": YARN, "partial_rotary_factor": 0.75}, {"rope_scaling": YARN, "partial_rotary_factor": 0.4},
    {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "partial_rotary_factor": 0.75},
    {"parallel_attn": False, "new_decoder_architecture": True},
    {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1},
    {"multi_query": True, "num_kv_heads": 2}, {"multi_query": False, "num_kv_heads": 2},
    {"layer_types": DROPPED, "sliding_window": None}, {"layer_types": DROPPED, "sliding_window": 3},
]

# As TOGETHER, of one family.
BY_TYPE = {
    "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 50.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
}
ROTARY_BY_TYPE = [
    {"rope_parameters": BY_TYPE}, {"rope_parameters": {"full_attention": BY_TYPE["full_attention"]}},
    {"rope_parameters": {"sliding_attention": BY_TYPE["sliding_attention"]}},
    {"rope_parameters": BY_TYPE | {"full_attention": None}}, {"rope_parameters": BY_TYPE | {"full_attention": {}}},
    {"rope_parameters": BY_TYPE | {"sliding_attention": {"rope_type": "default"}}, "rope_theta": 50.0},
    {"rope_parameters": BY_TYPE | {"full_attention": {"rope_type": "default"}}, "rope_theta": 50.0},
    {"rope_parameters": DROPPED, "rope_theta": 50.0}, {"rope_parameters": DROPPED, "rope_scaling": LINEAR},
    {"rope_parameters": BY_TYPE, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    {"rope_parameters": BY_TYPE, "rope_scaling": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500.0}},
]
OF_TYPE = {
    "gemma2": [
        {"attn_logit_softcapping": 0.7}, {"attn_logit_softcapping": 0.0}, {"attn_logit_softcapping": -1.0},
        {"final_logit_softcapping": 0.7}, {"final_logit_softcapping": 0.0}, {"query_pre_attn_scalar": 0},
        {"query_pre_attn_scalar": -3}, {"layer_types": DROPPED}, {"hidden_activation": "gelu"},
        {"hidden_activation": "no such"}, {"hidden_activation": DROPPED},
    ],
    "gemma3_text": ROTARY_BY_TYPE + [
        {"rope_parameters": DROPPED, "rope_local_base_freq": 50.0}, {"rope_parameters": DROPPED, "rope_local_base_freq": 50},
        {"rope_parameters": BY_TYPE, "rope_local_base_freq": 50.0}, {"layer_types": DROPPED},
        {"layer_types": DROPPED, "sliding_window_pattern": 2}, {"layer_types": DROPPED, "sliding_window_pattern": 1},
        {"layer_types": DROPPED, "sliding_window_pattern": 0}, {"layer_types": DROPPED, "sliding_window_pattern": None},
        {"final_logit_softcapping": 0.7}, {"query_pre_attn_scalar": 0}, {"hidden_activation": "silu"},
    ],
    "cohere2": [
        {"layer_types": DROPPED}, {"layer_types": DROPPED, "sliding_window_pattern": 2},
        {"layer_types": DROPPED, "sliding_window_pattern": 1}, {"layer_types": DROPPED, "sliding_window_pattern": None},
    ],
    "olmo3": ROTARY_BY_TYPE + [{"layer_types": DROPPED}],
}
# Of families with mixtures of experts.
EXPERTS = [
    {"num_experts_per_tok": 1}, {"num_experts_per_tok": 3}, {"num_experts_per_tok": 7}, {"num_experts_per_tok": 0},
    {"norm_topk_prob": True}, {"norm_topk_prob": False}, {"num_local_experts": 3}, {"num_experts": 3},
    {"decoder_sparse_step": 2}, {"decoder_sparse_step": 0}, {"mlp_only_layers": [1]}, {"mlp_only_layers": []},
    {"moe_intermediate_size": 10}, {"shared_expert_intermediate_size": 10}, {"router_jitter_noise": 0.5},
    {"router_aux_loss_coef": 0.5}, {"swiglu_alpha": 1.0}, {"swiglu_limit": 7.0}, {"swiglu_limit": 0.0},
    {"layer_types": DROPPED}, {"use_sliding_window": True, "sliding_window": 3}, {"sliding_window": 3}, {"rope_parameters": DROPPED},
]
OF_TYPE |= dict.fromkeys(["mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "granitemoe", "gpt_oss"], EXPERTS)

OTHER_TYPES = [None, True, 7, 2.5, "text", []]


def changes(config: dict):
    """Every change once. A change maps keys to new values, or to DROPPED."""
    for key in config:
        # No prompt has a pad token; transformers minds one beyond the vocabulary, as the default may be.
        if key != "pad_token_id":
            yield {key: DROPPED}
        if key in SETTINGS and key not in OF_ANY_TYPE:
            yield from ({key: value} for value in OTHER_TYPES)
    # transformers minds the types of all keys of a family, also of those on which no number depends.
    for field in dataclasses.fields(transformers.CONFIG_MAPPING[config["model_type"]]):
        if field.name not in OF_EVERY_FAMILY:
            yield from ({field.name: value} for value in OTHER_TYPES)
    yield from ({"id2label": value} for value in OTHER_TYPES)
    for key, values in SETTINGS.items():
        yield from ({key: value} for value in values)
    yield from TOGETHER
    yield from OF_TYPE.get(config["model_type"], [])


def distinct(config: dict):
    """The changes that change something, each once."""
    seen = set()
    for change in changes(config):
        if "output_attentions" in change and attention_implementation(config) != "eager":
            continue  # which the other does not have
        change = {
            key: value for key, value in change.items()
            if (key in config if value is DROPPED else key not in config or text(config[key]) != text(value))}
        name = text({key: "DROPPED" if value is DROPPED else value for key, value in change.items()})
        if change and name not in seen:
            seen.add(name)
            yield change


def text(value):
    return json.dumps(value, sort_keys=True)


@torch.no_grad()
def logits(folder: Path, config: dict):
    """None if transformers refuses the configuration, or has no weights for a part of it; and why."""
    (folder / "config.json").write_text(json.dumps(config))
    try:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=attention_implementation(config),
            output_loading_info=True)
        if info["missing_keys"] or info["mismatched_keys"]:
            return None, "weights are missing: " + " ".join(sorted(map(str, info["missing_keys"]))[:2])
        found = model.eval()(input_ids=torch.tensor([TOKENS]), use_cache=False, return_dict=True).logits[0]
    except Exception as error:  # whatever the reason
        return None, f"{type(error).__name__}: {error}".replace("\n", " ")[:150]
    return (found, "") if found.isfinite().all() else (None, "not finite")


class Outcomes:
    """Each distinct outcome once."""

    def __init__(self, unchanged):
        self.logits = [unchanged]

    def place(self, logits):
        gaps = [(logits - other).abs().max().item() for other in self.logits]
        nearest = min(range(len(gaps)), key=gaps.__getitem__)
        if gaps[nearest] < SAME:
            return nearest
        self.logits.append(logits)
        far = (stored(logits) - stored(self.logits[0])).abs().max().item()
        assert far > FAR, f"what is stored differs by {far} only: store more"
        return len(self.logits) - 1


def stored(logits):
    return logits[POSITIONS, ::STEP].flatten()


def cases(name: str, source: Path, folder: Path):
    """What each change comes to, and the distinct outcomes."""
    shutil.copy(source / "model.safetensors", folder)
    whole = json.loads((source / "config.json").read_text())
    found = Outcomes(logits(folder, whole)[0])
    config, out = whole.get(TEXT, whole), []
    for change in distinct(config):
        changed = {key: value for key, value in (config | change).items() if value is not DROPPED}
        now, why = logits(folder, whole | {TEXT: changed} if TEXT in whole else changed)
        values = {key: value for key, value in change.items() if value is not DROPPED}
        dropped = [key for key, value in change.items() if value is DROPPED]
        case = ({"set": values} if values else {}) | ({"drop": dropped} if dropped else {})
        out.append(case | {"logits": "refused" if now is None else found.place(now)})
        if VERBOSE:
            print(name, json.dumps(out[-1]), why)
    return out, found.logits, TEXT if TEXT in whole else None


def main(names):
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity(50)
    transformers.utils.logging.disable_progress_bar()
    OUT.mkdir(exist_ok=True)
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            out, found, within = cases(name, FIXTURES / "families" / name, Path(folder))
        values = [[round(x, 5) for x in stored(one).tolist()] for one in found]
        head = f'"tokens": {TOKENS}, "positions": {POSITIONS}, "step": {STEP}'
        head += f', "within": "{within}"' if within else ""
        lines = [",\n".join("  " + json.dumps(entry) for entry in entries) for entries in (out, values)]
        (OUT / f"{name}.json").write_text(f'{{{head},\n"cases": [\n{lines[0]}\n],\n"logits": [\n{lines[1]}\n]}}\n')
        counts = [sum(test(case["logits"]) for case in out) for test in (
            lambda x: x == 0, lambda x: x not in (0, "refused"), lambda x: x == "refused")]
        print(name, "same {}, changed {}, refused {}".format(*counts), f"{len(found)} distinct logits", flush=True)


if __name__ == "__main__":
    main([name for name in sys.argv[1:] if name != "-v"] or sorted(p.name for p in (FIXTURES / "families").iterdir()))
