"""Makes tiny checkpoints in TransformerLens's own format, in tests/fixtures/transformer_lens/<name>/, and their expected
values in `expected/`.

    pip install torch transformers transformer_lens pyarrow
    python tests/reference/lens.py

The weights are those of a random GPT-2 (with SoLU as its activation), which computes the same; the expected values are measured on it, as
measurement.py says. TransformerLens itself loads what is written, and must give its logits.

Made with torch 2.15.0, transformers 5.24.0, transformer_lens 4.3.0.
"""

import json
import shutil

import pyarrow.parquet as pq
import torch
import transformers

from families import FIXTURES, HEADS, randomise
from measurement import Effects, Measurement, inputs

CHECKPOINTS = ["attn-only", "gelu", "solu"]
SIZES = {"d_model": 24, "n_layers": 3, "n_heads": 4, "d_head": 6, "d_mlp": 44, "n_ctx": 64, "d_vocab": 384}


class SoLU(torch.nn.Module):
    """x softmax(x) over all neurons, and a layer norm of it."""

    def __init__(self, generator):
        super().__init__()
        self.ln = torch.nn.LayerNorm(SIZES["d_mlp"], 1e-5)
        self.ln.weight.copy_(1 + 0.3 * torch.randn(SIZES["d_mlp"], generator=generator))
        self.ln.bias.copy_(0.3 * torch.randn(SIZES["d_mlp"], generator=generator))

    def forward(self, x):
        return self.ln(x * x.softmax(-1))


@torch.no_grad()
def gpt2(name):
    config = transformers.GPT2Config(
        n_embd=24, n_layer=3, n_head=4, n_inner=44, n_positions=64, vocab_size=384, activation_function="gelu",
        tie_word_embeddings=False, bos_token_id=1, eos_token_id=0, attn_implementation="eager")
    model = transformers.GPT2LMHeadModel(config)
    randomise(model, CHECKPOINTS.index(name))
    generator = torch.Generator().manual_seed(1)
    for block in model.transformer.h:
        if name == "attn-only":
            block.mlp.c_proj.weight.zero_()
            block.mlp.c_proj.bias.zero_()
        if name == "solu":
            block.mlp.act = SoLU(generator)
    return model.eval()


def state_dict(model, name):
    """By TransformerLens's names, W_Q, W_K and W_V [head, d_model, d_head] and W_O [head, d_head, d_model]."""
    t, heads = model.transformer, SIZES["n_heads"]
    out = {"embed.W_E": t.wte.weight, "pos_embed.W_pos": t.wpe.weight, "unembed.W_U": model.lm_head.weight.T}
    out |= {"ln_final.w": t.ln_f.weight, "ln_final.b": t.ln_f.bias}
    for l, block in enumerate(t.h):
        at = f"blocks.{l}"
        weights, biases = block.attn.c_attn.weight.chunk(3, 1), block.attn.c_attn.bias.chunk(3)
        for part, w, b in zip("QKV", weights, biases):
            out[f"{at}.attn.W_{part}"] = w.unflatten(1, (heads, -1)).transpose(0, 1)
            out[f"{at}.attn.b_{part}"] = b.unflatten(0, (heads, -1))
        out[f"{at}.attn.W_O"] = block.attn.c_proj.weight.unflatten(0, (heads, -1))
        out[f"{at}.attn.b_O"] = block.attn.c_proj.bias
        out[f"{at}.attn.mask"] = torch.ones(64, 64).tril().bool()
        out[f"{at}.attn.IGNORE"] = torch.tensor(-1e5)
        norms = {"ln1": block.ln_1}
        norms |= {} if name == "attn-only" else {"ln2": block.ln_2}
        norms |= {"mlp.ln": block.mlp.act.ln} if name == "solu" else {}
        for part, norm in norms.items():
            out |= {f"{at}.{part}.w": norm.weight, f"{at}.{part}.b": norm.bias}
        if name != "attn-only":
            out |= {f"{at}.mlp.W_in": block.mlp.c_fc.weight, f"{at}.mlp.b_in": block.mlp.c_fc.bias}
            out |= {f"{at}.mlp.W_out": block.mlp.c_proj.weight, f"{at}.mlp.b_out": block.mlp.c_proj.bias}
    return {key: tensor.detach().contiguous() for key, tensor in out.items()}


@torch.no_grad()
def check(folder, config, tokens, expected):
    """TransformerLens's own reading of what was written."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge.sources import tl_legacy
    from transformer_lens.model_bridge.sources.native import boot
    from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint

    tl_legacy._fetch_json = lambda *_: json.loads((folder / "config.json").read_text())
    cfg = tl_legacy.derive_tl_legacy_config("NeelNanda/tiny")
    assert isinstance(cfg, TransformerBridgeConfig)
    model = boot(cfg)
    weights = convert_tl_checkpoint(torch.load(folder / "model_final.pth", weights_only=True), cfg)
    weights.setdefault("unembed.bias", torch.zeros(config["d_vocab"]))
    model.load_state_dict(weights, strict=True)
    gap = (model(tokens) - expected).abs().max().item()
    assert gap < 1e-4, f"TransformerLens gives other logits: {gap}"
    return gap


def main():
    torch.set_num_threads(1)
    tiny = FIXTURES / "tiny-llama" / "expected"
    tokens, partner = inputs(*(pq.read_table(tiny / f"{table}.parquet") for table in ["tokens", "pairs"]))
    for name in CHECKPOINTS:
        folder = FIXTURES / "transformer_lens" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        config = SIZES | {
            "act_fn": "solu_ln" if name == "solu" else "gelu", "attn_only": name == "attn-only", "normalization": "LN",
            "shortformer_pos": False}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        model = gpt2(name)
        torch.save(state_dict(model, name), folder / "model_final.pth")
        gap = check(folder, config, tokens, model(input_ids=tokens, use_cache=False).logits)
        effects = Effects(Measurement(model.double()), tokens, partner)
        effects.write(folder / "expected", HEADS, layers=range(3), logits_of=1)
        print(name, f"TransformerLens {gap:.1e}", *(f"{k} {v:.1e}" for k, v in effects.residuals.items()), flush=True)


if __name__ == "__main__":
    main()
