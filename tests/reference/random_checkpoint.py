"""Writes a checkpoint of the size of GPT-2, Pythia, Gemma 3, Llama 3 or OLMoE with random weights, to measure speed and
memory on.

    pip install numpy safetensors
    python tests/reference/random_checkpoint.py gpt2-small /tmp/gpt2
    pipeline bench --set model.source=/tmp/gpt2

The tokenizer is that of the tests' tiny model: the text becomes other tokens than with the real one, which take as many
operations. A width in heads of 64 and a number of layers may follow, to see how cost grows: `gpt2-small 8x6`.
"""

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

TOKENIZER = Path(__file__).parent.parent / "fixtures/tiny-llama/tokenizer.json"
rng = np.random.default_rng(0)


def weight(*shape):
    return (0.02 * rng.standard_normal(shape, dtype=np.float32)).astype(np.float32)


def norm(name, d):
    return {f"{name}.weight": np.ones(d, np.float32), f"{name}.bias": np.zeros(d, np.float32)}


def linear(name, shape, outputs):
    return {f"{name}.weight": weight(*shape), f"{name}.bias": np.zeros(outputs, np.float32)}


def gpt2(heads, layers):
    d, vocab, positions = 64 * heads, 50257, 1024
    config = dict(model_type="gpt2", architectures=["GPT2LMHeadModel"], activation_function="gelu_new", n_embd=d,
                  n_head=heads, n_layer=layers, n_inner=4 * d, n_positions=positions, layer_norm_epsilon=1e-5,
                  tie_word_embeddings=True, vocab_size=vocab, bos_token_id=1, eos_token_id=0)
    tensors = {"transformer.wte.weight": weight(vocab, d), "transformer.wpe.weight": weight(positions, d)}
    tensors |= norm("transformer.ln_f", d)
    for i in range(layers):
        at = f"transformer.h.{i}"
        tensors |= norm(f"{at}.ln_1", d) | norm(f"{at}.ln_2", d)
        tensors |= linear(f"{at}.attn.c_attn", (d, 3 * d), 3 * d) | linear(f"{at}.attn.c_proj", (d, d), d)
        tensors |= linear(f"{at}.mlp.c_fc", (d, 4 * d), 4 * d) | linear(f"{at}.mlp.c_proj", (4 * d, d), d)
    return config, tensors


def pythia(heads, layers):
    d, vocab = 64 * heads, 50304
    config = dict(model_type="gpt_neox", architectures=["GPTNeoXForCausalLM"], hidden_act="gelu", hidden_size=d,
                  intermediate_size=4 * d, layer_norm_eps=1e-5, max_position_embeddings=2048, num_attention_heads=heads,
                  num_hidden_layers=layers, rotary_emb_base=10000, rotary_pct=0.25, tie_word_embeddings=False,
                  use_parallel_residual=True, vocab_size=vocab, bos_token_id=1, eos_token_id=0)
    tensors = {"gpt_neox.embed_in.weight": weight(vocab, d), "embed_out.weight": weight(vocab, d)}
    tensors |= norm("gpt_neox.final_layer_norm", d)
    for i in range(layers):
        at = f"gpt_neox.layers.{i}"
        tensors |= norm(f"{at}.input_layernorm", d) | norm(f"{at}.post_attention_layernorm", d)
        tensors |= linear(f"{at}.attention.query_key_value", (3 * d, d), 3 * d)
        tensors |= linear(f"{at}.attention.dense", (d, d), d)
        tensors |= linear(f"{at}.mlp.dense_h_to_4h", (4 * d, d), 4 * d)
        tensors |= linear(f"{at}.mlp.dense_4h_to_h", (d, 4 * d), d)
    return config, tensors


def gemma3(heads, layers):
    """Heads are 256 wide, and all of them read one key and value. The vocabulary is an eighth of the published one."""
    d, width, m, vocab = 160 * heads, 256, 512 * heads, 32768
    config = dict(model_type="gemma3_text", architectures=["Gemma3ForCausalLM"], hidden_size=d, intermediate_size=m,
                  num_attention_heads=heads, num_key_value_heads=1, head_dim=width, num_hidden_layers=layers,
                  hidden_activation="gelu_pytorch_tanh", rms_norm_eps=1e-6, query_pre_attn_scalar=256,
                  sliding_window=512, max_position_embeddings=32768, vocab_size=vocab, bos_token_id=1, eos_token_id=0)
    tensors = {"model.embed_tokens.weight": weight(vocab, d), "model.norm.weight": np.zeros(d, np.float32)}
    for i in range(layers):
        at = f"model.layers.{i}"
        for name in ["input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
                     "post_feedforward_layernorm"]:
            tensors[f"{at}.{name}.weight"] = np.zeros(d, np.float32)
        for name in ["q_norm", "k_norm"]:
            tensors[f"{at}.self_attn.{name}.weight"] = np.zeros(width, np.float32)
        for name, shape in [("self_attn.q_proj", (heads * width, d)), ("self_attn.k_proj", (width, d)),
                            ("self_attn.v_proj", (width, d)), ("self_attn.o_proj", (d, heads * width)),
                            ("mlp.gate_proj", (m, d)), ("mlp.up_proj", (m, d)), ("mlp.down_proj", (d, m))]:
            tensors[f"{at}.{name}.weight"] = weight(*shape)
    return config, tensors


def bfloat16(*shape):
    """Random bits that are numbers of about 0.02, as they are stored."""
    pool = (weight(1 << 22).view(np.uint32) >> 16).astype(np.uint16)
    return np.resize(pool, shape)


def llama_attention(at, d, width, kv):
    ones = np.full(d, 0x3F80, np.uint16)  # 1.0
    tensors = {f"{at}.{name}.weight": ones for name in ["input_layernorm", "post_attention_layernorm"]}
    shapes = {"q_proj": (width, d), "k_proj": (kv, d), "v_proj": (kv, d), "o_proj": (d, width)}
    return tensors | {f"{at}.self_attn.{name}.weight": bfloat16(*shape) for name, shape in shapes.items()}


def llama(heads, layers, d_head=128, kv_heads=8, mlp=3.5, vocab=128256):
    """In bfloat16, a file for each layer."""
    d, m = d_head * heads, int(mlp * d_head * heads)
    config = dict(model_type="llama", architectures=["LlamaForCausalLM"], hidden_size=d, intermediate_size=m,
                  num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=d_head, num_hidden_layers=layers,
                  hidden_act="silu", rms_norm_eps=1e-5, rope_theta=500000.0, max_position_embeddings=8192,
                  vocab_size=vocab, tie_word_embeddings=False, bos_token_id=1, eos_token_id=0)

    def files():
        yield {"model.embed_tokens.weight": bfloat16(vocab, d), "lm_head.weight": bfloat16(vocab, d),
               "model.norm.weight": np.full(d, 0x3F80, np.uint16)}
        for i in range(layers):
            at = f"model.layers.{i}"
            shapes = {"gate_proj": (m, d), "up_proj": (m, d), "down_proj": (d, m)}
            mlps = {f"{at}.mlp.{name}.weight": bfloat16(*shape) for name, shape in shapes.items()}
            yield llama_attention(at, d, d, kv_heads * d_head) | mlps
    return config, files()


def olmoe(heads, layers):
    """In bfloat16; the experts of the published model are as wide as these for 16 heads."""
    d, m, experts, vocab = 128 * heads, 64 * heads, 64, 50304
    config = dict(model_type="olmoe", architectures=["OlmoeForCausalLM"], hidden_size=d, intermediate_size=m,
                  num_attention_heads=heads, num_key_value_heads=heads, num_hidden_layers=layers, num_experts=experts,
                  num_experts_per_tok=8, hidden_act="silu", rms_norm_eps=1e-5, rope_theta=10000.0,
                  max_position_embeddings=4096, vocab_size=vocab, tie_word_embeddings=False, bos_token_id=1,
                  eos_token_id=0)

    def files():
        yield {"model.embed_tokens.weight": bfloat16(vocab, d), "lm_head.weight": bfloat16(vocab, d),
               "model.norm.weight": np.full(d, 0x3F80, np.uint16)}
        for i in range(layers):
            at = f"model.layers.{i}"
            tensors = llama_attention(at, d, d, d)
            for name in ["q_norm", "k_norm"]:
                tensors[f"{at}.self_attn.{name}.weight"] = np.full(d, 0x3F80, np.uint16)
            tensors[f"{at}.mlp.gate.weight"] = bfloat16(experts, d)
            for e in range(experts):
                shapes = {"gate_proj": (m, d), "up_proj": (m, d), "down_proj": (d, m)}
                tensors |= {f"{at}.mlp.experts.{e}.{name}.weight": bfloat16(*shape) for name, shape in shapes.items()}
            yield tensors
    return config, files()


def write_files(folder, files):
    """A file for each dict of bfloat16 tensors, and their index."""
    places = {}
    for i, tensors in enumerate(files):
        name = f"model-{i:05}.safetensors"
        ends = np.cumsum([value.nbytes for value in tensors.values()]).tolist()
        head = json.dumps({
            key: {"dtype": "BF16", "shape": value.shape, "data_offsets": [end - value.nbytes, end]}
            for (key, value), end in zip(tensors.items(), ends)}).encode()
        with open(folder / name, "wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            for value in tensors.values():
                file.write(value.data)
        places |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


MODELS = {"gpt2-small": (gpt2, 12, 12), "pythia-160m": (pythia, 12, 12), "pythia-410m": (pythia, 16, 24),
          "gemma3-270m": (gemma3, 4, 18), "llama-1b": (partial(llama, d_head=64, mlp=4), 32, 16),
          "llama-3b": (partial(llama, mlp=8 / 3), 24, 28), "llama-8b": (llama, 32, 32), "olmoe": (olmoe, 16, 16)}

if __name__ == "__main__":
    make, heads, layers = MODELS[sys.argv[1]]
    if len(sys.argv) > 3:
        heads, layers = map(int, sys.argv[3].split("x"))
    folder = Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    config, tensors = make(heads, layers)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    if isinstance(tensors, dict):
        save_file(tensors, folder / "model.safetensors")
    else:
        write_files(folder, tensors)
    shutil.copy(TOKENIZER, folder / "tokenizer.json")
