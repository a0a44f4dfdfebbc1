"""Writes tests/fixtures/gguf: checkpoints of the other fixtures in GGUF, as llama.cpp's convert_hf_to_gguf.py writes
them, and a file with a tensor of every type of quantisation.

    pip install torch transformers gguf xllamacpp
    python tests/reference/gguf_files.py                all of them
    python tests/reference/gguf_files.py gpt2 quants    these

- <name>.gguf: what families/<name> (tiny-llama for llama) holds, in float32, with the tokenizer of tiny-llama. Every
  one is run by llama.cpp and must give the log-probabilities that transformers gives.
- quants.gguf, quants.json: rows of blocks, and what gguf-py makes of them.

Settings that llama.cpp has no key for cannot be in a file: so neither mistral (its window), nor gpt2-stanford (scaled
by the layer), nor falcon-alibi and falcon-serial, nor the families llama.cpp has not (it knows the name gptj only).
These files hold another model than their checkpoint (`settings`, and `without` for tensors that are left out):

- smollm3 has rotary embeddings in all of its three layers, as llama.cpp leaves them out in every fourth.
- gemma2 and gemma3 divide scores by the square root of the width of a head, as llama.cpp does in all sizes but 27B.
- olmo2 and cohere have no biases in their attention: llama.cpp does not read them.
- starcoder2 has no window, mpt divides scores by the square root of the width of a head.

llama.cpp reads the window of phi3-mini and does not use it; the program does, as transformers does. So llama.cpp is
compared with transformers without the window (`ignored`), and the program with the checkpoint.

Made with torch 2.15.0, transformers 5.23.0, gguf 0.19.0, xllamacpp 2026.10.11549.
"""

import json
import math
import shutil
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
import pyarrow.parquet as pq
import torch
import transformers
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter
from safetensors.torch import load_file

FIXTURES = Path(__file__).parent.parent / "fixtures"
TINY_LLAMA = FIXTURES / "tiny-llama"
OUT = FIXTURES / "gguf"
# llama.cpp approximates GELU, from a table in float16, also where a model's is exact.
CLOSE, CLOSE_GELU = 1e-4, 1e-2
LETTER = 73


def settings_of(folder: Path) -> dict:
    """What the configuration says, by the names of transformers 5."""
    config = transformers.AutoConfig.from_pretrained(folder)
    c = config.to_dict()
    return c | {
        "layers": config.num_hidden_layers,
        "head_dim": c.get("head_dim") or config.hidden_size // config.num_attention_heads,
        "head_dim_given": c.get("head_dim") is not None,
        "rope": c.get("rope_parameters") or {},
    }


# Of a writer and the settings: what the converter writes about a model, and in that order.


def write_common(w: GGUFWriter, c: dict):
    w.add_block_count(c["layers"])
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(c["num_attention_heads"])
    if "num_key_value_heads" in c:
        w.add_head_count_kv(c["num_key_value_heads"])
    w.add_rope_freq_base(c["rope"]["rope_theta"])
    if "rms_norm_eps" in c:
        w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    if c["head_dim_given"]:
        w.add_key_length(c["head_dim"])
        w.add_value_length(c["head_dim"])
    w.add_file_type(gguf.LlamaFileType.ALL_F32)


def write_llama(w: GGUFWriter, c: dict):
    write_common(w, c)
    w.add_vocab_size(c["vocab_size"])
    w.add_rope_dimension_count(c["head_dim"])


def write_olmo(w: GGUFWriter, c: dict):
    write_common(w, c)
    w.add_layer_norm_eps(1e-5)


def write_gpt2(w: GGUFWriter, c: dict):
    w.add_block_count(c["layers"])
    w.add_context_length(c["n_positions"])
    w.add_embedding_length(c["n_embd"])
    # The converter says 4 × n_embd, and llama.cpp refuses the file of a model for which that is wrong.
    w.add_feed_forward_length(c["n_inner"] or 4 * c["n_embd"])
    w.add_head_count(c["n_head"])
    w.add_layer_norm_eps(c["layer_norm_epsilon"])
    w.add_file_type(gguf.LlamaFileType.ALL_F32)


def add_rope_freq_base(w: GGUFWriter, c: dict):
    """For those for which the converter does not write it, as published models have 10000, which is then understood."""
    w.add_rope_freq_base(c["rope"]["rope_theta"])


def rotated(c: dict) -> int:
    return int(c["rope"].get("partial_rotary_factor", 1) * c["head_dim"])


def write_gptneox(w: GGUFWriter, c: dict):
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_block_count(c["layers"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_rope_dimension_count(rotated(c))
    w.add_head_count(c["num_attention_heads"])
    w.add_parallel_residual(c["use_parallel_residual"])
    w.add_layer_norm_eps(c["layer_norm_eps"])
    add_rope_freq_base(w, c)


def write_gemma(w: GGUFWriter, c: dict):
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_block_count(c["layers"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(c["num_attention_heads"])
    w.add_head_count_kv(c["num_key_value_heads"])
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_key_length(c["head_dim"])
    w.add_value_length(c["head_dim"])
    w.add_file_type(gguf.LlamaFileType.ALL_F32)
    add_rope_freq_base(w, c)


def write_stablelm(w: GGUFWriter, c: dict):
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_block_count(c["layers"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_rope_dimension_count(rotated(c))
    w.add_head_count(c["num_attention_heads"])
    w.add_head_count_kv(c["num_key_value_heads"])
    w.add_parallel_residual(c["use_parallel_residual"])
    w.add_layer_norm_eps(c["layer_norm_eps"])
    w.add_file_type(gguf.LlamaFileType.ALL_F32)
    add_rope_freq_base(w, c)


def write_phi2(w: GGUFWriter, c: dict):
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    # As for gpt2.
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_block_count(c["layers"])
    w.add_head_count(c["num_attention_heads"])
    w.add_head_count_kv(c["num_attention_heads"])
    w.add_layer_norm_eps(c["layer_norm_eps"])
    w.add_rope_dimension_count(rotated(c))
    w.add_file_type(gguf.LlamaFileType.ALL_F32)
    w.add_add_bos_token(False)
    add_rope_freq_base(w, c)


def write_gemma2(w: GGUFWriter, c: dict):
    write_gemma(w, c)
    w.add_attn_logit_softcapping(c["attn_logit_softcapping"])
    w.add_final_logit_softcapping(c["final_logit_softcapping"])
    w.add_sliding_window(c["sliding_window"])


def write_gemma3(w: GGUFWriter, c: dict):
    """The converter leaves out the base of layers with a window (10000 in published models) and their period (6)."""
    full, sliding = c["rope"]["full_attention"], c["rope"]["sliding_attention"]
    write_gemma(w, c | {"rope": full})
    w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    w.add_rope_scaling_factor(full["factor"])
    w.add_rope_freq_base_swa(sliding["rope_theta"])
    w.add_sliding_window(c["sliding_window"])
    w.add_sliding_window_pattern(2)


def write_phi3(w: GGUFWriter, c: dict):
    rope = c["rope"]
    w.add_context_length(c["max_position_embeddings"])
    w.add_rope_scaling_orig_ctx_len(c["original_max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_block_count(c["layers"])
    w.add_head_count(c["num_attention_heads"])
    w.add_head_count_kv(c["num_key_value_heads"])
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_rope_dimension_count(rotated(c))
    w.add_rope_freq_base(rope["rope_theta"])
    w.add_file_type(gguf.LlamaFileType.ALL_F32)
    w.add_sliding_window(c["sliding_window"] or 0)
    if "long_factor" in rope:
        original = c["original_max_position_embeddings"]
        scale = c["max_position_embeddings"] / original
        w.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)))


def write_starcoder2(w: GGUFWriter, c: dict):
    write_common(w, c)
    w.add_layer_norm_eps(c["norm_epsilon"])


def write_granite(w: GGUFWriter, c: dict):
    write_llama(w, c)
    w.add_attention_scale(c["attention_multiplier"])
    w.add_embedding_scale(c["embedding_multiplier"])
    w.add_residual_scale(c["residual_multiplier"])
    w.add_logit_scale(c["logits_scaling"])


def write_command_r(w: GGUFWriter, c: dict):
    write_common(w, c)
    w.add_layer_norm_eps(c["layer_norm_eps"])
    w.add_logit_scale(c["logit_scale"])
    w.add_rope_scaling_type(gguf.RopeScalingType.NONE)


def write_bloom(w: GGUFWriter, c: dict):
    w.add_context_length(2048)
    w.add_embedding_length(c["hidden_size"])
    w.add_feed_forward_length(4 * c["hidden_size"])
    w.add_block_count(c["layers"])
    w.add_head_count(c["n_head"])
    w.add_head_count_kv(c["n_head"])
    w.add_layer_norm_eps(c["layer_norm_epsilon"])
    w.add_file_type(gguf.LlamaFileType.ALL_F32)


def falcon_kv_heads(c: dict) -> int:
    return c["num_kv_heads"] if c["new_decoder_architecture"] else 1


def write_falcon(w: GGUFWriter, c: dict):
    w.add_context_length(2048)
    w.add_tensor_data_layout("jploski")
    w.add_embedding_length(c["hidden_size"])
    # As for gpt2.
    w.add_feed_forward_length(c["ffn_hidden_size"])
    w.add_block_count(c["layers"])
    w.add_head_count(c["num_attention_heads"])
    w.add_head_count_kv(falcon_kv_heads(c))
    w.add_layer_norm_eps(c["layer_norm_epsilon"])
    w.add_file_type(gguf.LlamaFileType.ALL_F32)
    add_rope_freq_base(w, c)


def write_mpt(w: GGUFWriter, c: dict):
    w.add_context_length(c["max_seq_len"])
    w.add_embedding_length(c["d_model"])
    w.add_block_count(c["layers"])
    w.add_feed_forward_length(4 * c["d_model"])
    w.add_head_count(c["n_heads"])
    # The converter says 1e-5.
    w.add_layer_norm_eps(c["layer_norm_epsilon"])
    w.add_max_alibi_bias(c["attn_config"]["alibi_bias_max"])
    w.add_file_type(gguf.LlamaFileType.ALL_F32)


# Of a tensor's name in the checkpoint, the tensor, and the settings: the tensor as the converter stores it.


def as_is(name, t, c):
    return t


def interleaved(name, t, c):
    """Rotary embeddings pair dimensions i and i + half in transformers, 2i and 2i + 1 in llama.cpp."""
    if ".q_proj." not in name and ".k_proj." not in name:
        return t
    heads = c["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
    # Rows (head, half, i) become (head, i, half).
    return t.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def without_conv1d(name, t, c):
    """Conv1D stores the transpose of what a linear layer does."""
    return t.T if t.dim() == 2 and ".h." in name else t


def whole_qkv(name, t, c):
    """Rows (head, q/k/v, i) become (q/k/v, head, i)."""
    if "query_key_value" not in name:
        return t
    heads = c.get("n_head") or c["num_attention_heads"]
    return t.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)


def ungrouped_qkv(name, t, c):
    """Rows (key-value head, its query heads then key and value, i) become all queries, all keys, all values."""
    if "query_key_value" not in name:
        return t
    groups = t.unflatten(0, (falcon_kv_heads(c), -1, c["head_dim"]))
    return torch.cat([part.flatten(0, 2) for part in (groups[:, :-2], groups[:, -2:-1], groups[:, -1:])])


def with_gamma(name, t, c):
    """The checkpoint stores γ − 1."""
    return t + 1 if name.endswith("norm.weight") else t


@dataclass(frozen=True)
class File:
    arch: MODEL_ARCH
    source: str
    write: Callable
    change: Callable
    """What is done to tensors."""
    close: float = CLOSE
    """How close log-probabilities must be."""
    settings: dict = field(default_factory=dict)
    """Of the model that the file holds, where not the checkpoint's."""
    without: str = ""
    """The end of names of tensors that the file leaves out, as the settings do."""
    ignored: dict = field(default_factory=dict)
    """Settings by which transformers does what llama.cpp does with the file."""


FILES = {
    "llama": File(MODEL_ARCH.LLAMA, "tiny-llama", write_llama, interleaved),
    "llama3": File(MODEL_ARCH.LLAMA, "families/llama3", write_llama, interleaved),
    "qwen2": File(MODEL_ARCH.QWEN2, "families/qwen2", write_common, as_is),
    "qwen3": File(MODEL_ARCH.QWEN3, "families/qwen3", write_common, as_is),
    "gpt2": File(MODEL_ARCH.GPT2, "families/gpt2", write_gpt2, without_conv1d, CLOSE_GELU),
    "gpt_neox": File(MODEL_ARCH.GPTNEOX, "families/gpt_neox", write_gptneox, whole_qkv, CLOSE_GELU),
    "gpt_neox-serial": File(MODEL_ARCH.GPTNEOX, "families/gpt_neox-serial", write_gptneox, whole_qkv, CLOSE_GELU),
    "gemma": File(MODEL_ARCH.GEMMA, "families/gemma", write_gemma, with_gamma, CLOSE_GELU),
    "stablelm": File(MODEL_ARCH.STABLELM, "families/stablelm", write_stablelm, as_is),
    "stablelm-parallel": File(MODEL_ARCH.STABLELM, "families/stablelm-parallel", write_stablelm, as_is),
    "phi": File(MODEL_ARCH.PHI2, "families/phi", write_phi2, as_is, CLOSE_GELU),
    "olmo": File(MODEL_ARCH.OLMO, "families/olmo", write_olmo, interleaved),
    "smollm3": File(
        MODEL_ARCH.SMOLLM3, "families/smollm3", write_llama, interleaved, settings={"no_rope_layers": [1, 1, 1]}),
    "gemma2": File(
        MODEL_ARCH.GEMMA2, "families/gemma2", write_gemma2, with_gamma, CLOSE_GELU,
        settings={"query_pre_attn_scalar": 8}),
    "gemma3": File(
        MODEL_ARCH.GEMMA3, "families/gemma3", write_gemma3, with_gamma, CLOSE_GELU,
        settings={"query_pre_attn_scalar": 8}),
    "olmo2": File(
        MODEL_ARCH.OLMO2, "families/olmo2", write_common, as_is, settings={"attention_bias": False}, without=".bias"),
    "phi3": File(MODEL_ARCH.PHI3, "families/phi3", write_phi3, as_is),
    "phi3-mini": File(
        MODEL_ARCH.PHI3, "families/phi3-mini", write_phi3, as_is, ignored={"sliding_window": None}),
    "starcoder2": File(
        MODEL_ARCH.STARCODER2, "families/starcoder2", write_starcoder2, as_is, CLOSE_GELU,
        settings={"sliding_window": None}),
    "granite": File(MODEL_ARCH.GRANITE, "families/granite", write_granite, interleaved),
    "cohere": File(
        MODEL_ARCH.COMMAND_R, "families/cohere", write_command_r, as_is, settings={"attention_bias": False},
        without=".bias"),
    "bloom": File(MODEL_ARCH.BLOOM, "families/bloom", write_bloom, whole_qkv, CLOSE_GELU),
    "falcon": File(MODEL_ARCH.FALCON, "families/falcon", write_falcon, ungrouped_qkv, CLOSE_GELU),
    "falcon-new": File(MODEL_ARCH.FALCON, "families/falcon-new", write_falcon, ungrouped_qkv, CLOSE_GELU),
    "mpt": File(
        MODEL_ARCH.MPT, "families/mpt", write_mpt, as_is, CLOSE_GELU,
        settings={"attn_config": {"softmax_scale": None}}),
}


def write_tokenizer(w: GGUFWriter):
    tokenizer = json.loads((TINY_LLAMA / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"] | {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
    special = {t["id"] for t in tokenizer["added_tokens"] if t["special"]}
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(sorted(vocab, key=vocab.get))
    w.add_token_types([
        gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for i in sorted(vocab.values())])
    w.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    w.add_bos_token_id(1)
    w.add_eos_token_id(0)


def finish(w: GGUFWriter):
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def start(name: str, arch: MODEL_ARCH) -> GGUFWriter:
    w = GGUFWriter(OUT / f"{name}.gguf", gguf.MODEL_ARCH_NAMES[arch])
    w.add_type(gguf.GGUFType.MODEL)
    # llama.cpp asks for tokens of Phi-3's own vocabulary in a model whose name has phi3 in it.
    w.add_name(name.replace("phi3", "phi"))
    return w


def rope_factors(rope: dict, head_dim: int) -> torch.Tensor:
    """What llama3's scaling divides frequencies by."""
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    frequencies = rope["rope_theta"] ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - kept) / factor + kept)).float()


def make(name: str):
    file = FILES[name]
    c = settings_of(FIXTURES / file.source)
    names = gguf.get_tensor_name_map(file.arch, c["layers"])
    w = start(name, file.arch)
    file.write(w, c)
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    write_tokenizer(w)
    if c["rope"].get("rope_type") == "llama3":
        w.add_tensor("rope_freqs.weight", rope_factors(c["rope"], c["head_dim"]).numpy())
    if "long_factor" in c["rope"]:
        for which in ["long", "short"]:
            w.add_tensor(f"rope_factors_{which}.weight", np.array(c["rope"][f"{which}_factor"], np.float32))
    for source, tensor in load_file(FIXTURES / file.source / "model.safetensors").items():
        if file.without and source.endswith(file.without):
            continue
        # As the converter does for BLOOM.
        known = source.removeprefix("transformer.") if file.arch == MODEL_ARCH.BLOOM else source
        target = names.get_name(known, try_suffixes=(".weight", ".bias"))
        w.add_tensor(target, file.change(source, tensor.float(), c).contiguous().numpy())
    finish(w)


def with_short_factors(name: str) -> Path:
    """llama.cpp chooses by its own context, of at least 256 positions, and not by the prompt's length. So it is given a
    copy that says that the short factors are for as many."""
    copy = Path(tempfile.mkdtemp()) / f"{name}.gguf"
    shutil.copy(OUT / f"{name}.gguf", copy)
    reader = gguf.GGUFReader(copy, "r+")
    reader.fields["phi3.rope.scaling.original_context_length"].parts[-1][0] = 256
    reader.data.flush()
    return copy


@torch.no_grad()
def check(name: str) -> float:
    """The largest difference between log-probabilities of llama.cpp and of transformers after each of three prompts."""
    import xllamacpp

    file = FILES[name]
    table = pq.read_table(TINY_LLAMA / "expected" / "tokens.parquet").to_pylist()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        FIXTURES / file.source, dtype=torch.float32, attn_implementation="eager",
        **file.settings | file.ignored).eval()
    params = xllamacpp.CommonParams()
    params.model.path = str(with_short_factors(name) if name == "phi3" else OUT / f"{name}.gguf")
    params.n_ctx, params.cpuparams.n_threads, params.verbosity, params.warmup = 64, 1, 0, False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    largest = 0
    for prompt in range(3):
        tokens = [row["token"] for row in table if row["prompt"] == prompt]
        # Were the next token the end or part of a character, llama.cpp would not answer with probabilities: so it is
        # made to choose a letter, which does not change them.
        ask = {
            "prompt": tokens, "n_predict": 1, "n_probs": 100, "temperature": 0, "cache_prompt": False,
            "logit_bias": [[LETTER, 1000]]}
        request = urllib.request.Request(
            server.listening_address + "/completion", json.dumps(ask).encode(), {"Content-Type": "application/json"})
        answer = json.load(urllib.request.urlopen(request))
        assert answer["tokens_evaluated"] == len(tokens), "llama.cpp must not add a token"
        top = answer["completion_probabilities"][0]["top_logprobs"]
        expected = model(torch.tensor([tokens])).logits[0, -1].log_softmax(-1)
        assert len(top) == 100 and set(expected.topk(50).indices.tolist()) <= {t["id"] for t in top}
        largest = max([largest] + [abs(t["logprob"] - expected[t["id"]].item()) for t in top])
    assert largest < file.close, f"{name}: llama.cpp differs by {largest}"
    return largest


# Those that gguf-py cannot quantise to: where in a block its scales are, as float16, and what to divide them by, as
# other scales of so many values multiply them.
RANDOM = {"Q2_K": ([80, 82], 16), "Q3_K": ([108], 32), "Q4_K": ([0, 2], 64), "Q5_K": ([0, 2], 64), "Q6_K": ([208], 128)}
QUANTS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", *RANDOM]
ROWS, COLUMNS = 4, 256


def blocks(name: str, random: np.random.Generator) -> np.ndarray:
    """ROWS × COLUMNS values, as bytes (but float32 and float16 as such)."""
    kind = GGMLQuantizationType[name]
    if name not in RANDOM:
        return gguf.quants.quantize(random.standard_normal((ROWS, COLUMNS), np.float32), kind)
    per_block, size = gguf.GGML_QUANT_SIZES[kind]
    data = random.integers(0, 256, (ROWS * COLUMNS // per_block, size), np.uint8)
    at, many = RANDOM[name]
    for offset in at:
        scale = random.uniform(0.1, 0.4, len(data)) / many
        data[:, offset:offset + 2] = scale.astype("<f2").view(np.uint8).reshape(-1, 2)
    return data.reshape(ROWS, -1)


def make_quants():
    random = np.random.default_rng(0)
    w = start("quants", MODEL_ARCH.LLAMA)
    w.add_block_count(len(QUANTS))
    w.add_context_length(64)
    w.add_embedding_length(COLUMNS)
    w.add_feed_forward_length(ROWS)
    w.add_head_count(4)
    w.add_head_count_kv(4)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_file_type(gguf.LlamaFileType.GUESSED)
    w.add_vocab_size(8)
    w.add_rope_dimension_count(COLUMNS // 4)
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    w.add_tensor("token_embd.weight", random.standard_normal((8, COLUMNS), np.float32))
    expected = []
    for i, name in enumerate(QUANTS):
        kind, tensor = GGMLQuantizationType[name], f"blk.{i}.ffn_up.weight"
        data = blocks(name, random)
        w.add_tensor(tensor, data, raw_dtype=kind)
        values = gguf.quants.dequantize(data, kind).astype(np.float32).reshape(-1)
        assert values.shape == (ROWS * COLUMNS,) and np.isfinite(values).all()
        # The shortest decimals that are these float32.
        first, last = ([float(str(v)) for v in part] for part in (values[:64], values[-64:]))
        expected.append({"type": name, "tensor": tensor, "first": first, "last": last})
    finish(w)
    (OUT / "quants.json").write_text("[\n" + ",\n".join(map(json.dumps, expected)) + "\n]\n")


def main(names):
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    OUT.mkdir(exist_ok=True)
    for name in names:
        if name == "quants":
            make_quants()
        else:
            make(name)
            print(name, f"{check(name):.1e}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or [*FILES, "quants"])
