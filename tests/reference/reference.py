"""An independent, plain implementation of what the pipeline measures, to make the expected values of the tests.

It hooks a Hugging Face model, recomputes everything for each ablated head (in float64 but for what transformers itself
casts to float32), forms whole logits, and shares no code with the pipeline. It reads a run's `tokens` and `pairs` tables (which prompts, which partners) and nothing else
of it.

    pip install torch transformers accelerate gguf tokenizers pyarrow
    python tests/reference/reference.py tiny-model tests/fixtures/tiny-llama
    python tests/reference/reference.py tokenizer  MODEL.gguf tests/fixtures/smollm2/tokenizer.json
    python tests/reference/reference.py measure    MODEL RUN tests/fixtures/NAME L0H1 L2H0 …

`measure` writes into its folder: `tokens.parquet` and `pairs.parquet` (the inputs), `clean.parquet`,
`direct_effects.parquet`, `ablations.parquet` and `logits.parquet` (the expected values).

Made with torch 2.15.0, transformers 5.23.0, tokenizers 0.23.3, gguf 0.19.0, pyarrow (see versions.txt beside each).
"""

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers


def tiny_model(folder: Path):
    """A randomly initialised Llama with grouped-query heads, a head width that is not d_model / heads, an untied
    unembedding and norm weights away from 1, and a byte-level tokenizer that fits it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder.mkdir(parents=True, exist_ok=True)
    texts = (folder.parent / "corpus.txt").read_text().splitlines()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=["<|endoftext|>", "<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=384, hidden_size=32, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, max_position_embeddings=64, rms_norm_eps=1e-5, rope_theta=5000.0,
        tie_word_embeddings=False, bos_token_id=1, eos_token_id=0, dtype="float32",
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.copy_(1 + 0.3 * torch.randn_like(p))
            else:
                # Large enough that heads matter to each other.
                p.copy_(torch.randn_like(p) * (1.6 / p.shape[-1] ** 0.5))
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


def tokenizer_ids(gguf: Path, out: Path):
    """Ids of awkward texts by transformers' own reading of the GGUF file."""
    from tokenizers import pre_tokenizers

    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The GGUF file names its pre-tokenizer "smollm"; transformers' reading of GGUF ignores that and splits as GPT-2
    # does. This is what the model's own tokenizer.json has (llama.cpp splits "smollm" in the same way). It differs for
    # numerals that are not digits, such as ½.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
    ])
    texts = [
        "Hello world", " leading and trailing ", "In 2024, 1234567 people paid £3.50 (±0.01 %).",
        "def f(x: int) -> str:\n    return f\"{x:>08d}\" if x != 0x7f else None\n\n\tif __name__ == '__main__':\r\n",
        "naïve café, Übergröße, Ærøskøbing, São Tomé, čeština, đổi mới", "e\u0301 is not é",
        "😀👩‍👩‍👧‍👦🏳️‍🌈 ✓ →", "你好,世界。日本語のテキスト と 한국어", "العربية עברית हिन्दी ไทย",
        "don't won't I'll they've we'd it's I'm", "   many   spaces\n\n\n\nand lines", "½ ² ① ٣ Ⅳ 1st 2nd",
        "<|im_start|>user\nhi<|im_end|><|endoftext|>", "a<|endoftext|>b", "\u00a0\u200b\ufeff", "https://a.b/c?d=e&f=%20#g",
        "x" * 50, "", "3.14159e-10 0b1010 1_000_000", "\x00\x01\x7f",
    ]
    cases = [{"text": t, "ids": tokenizer(t, add_special_tokens=False)["input_ids"]} for t in texts]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(cases, ensure_ascii=True, indent=0))


def load(path: Path):
    if path.suffix == ".gguf":
        model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(path)
    model.set_attn_implementation("eager")
    return model.double().eval()


class Measurement:
    """One model; a forward pass that can replace one head's z, and says what every component wrote."""

    def __init__(self, model):
        self.model, self.inner = model, model.model
        c = model.config
        self.layers, self.heads = c.num_hidden_layers, c.num_attention_heads
        self.d_head = getattr(c, "head_dim", None) or c.hidden_size // self.heads
        self.w_u = model.lm_head.weight.detach()
        self.centred = self.w_u - self.w_u.mean(0)
        self.gamma = self.inner.norm.weight.detach()
        self.eps = c.rms_norm_eps

    @torch.no_grad()
    def run(self, tokens, replace=None):
        """tokens [B, S]; replace = (layer, head, z [B, S, d_head])."""
        seen = {"z": [None] * self.layers, "mlp": [None] * self.layers}
        handles = []

        def embed(_, __, output):
            seen["embed"] = output.detach().clone()

        def before_o_proj(layer):
            def hook(_, args):
                z = args[0].clone()
                if replace is not None and replace[0] == layer:
                    h = replace[1]
                    z[..., h * self.d_head : (h + 1) * self.d_head] = replace[2]
                seen["z"][layer] = z.detach()
                return (z,)
            return hook

        def after_mlp(layer):
            def hook(_, __, output):
                seen["mlp"][layer] = output.detach().clone()
            return hook

        def before_norm(_, args):
            seen["residual"] = args[0].detach().clone()

        handles.append(self.inner.embed_tokens.register_forward_hook(embed))
        for l, block in enumerate(self.inner.layers):
            handles.append(block.self_attn.o_proj.register_forward_pre_hook(before_o_proj(l)))
            handles.append(block.mlp.register_forward_hook(after_mlp(l)))
        handles.append(self.inner.norm.register_forward_pre_hook(before_norm))
        seen["logits"] = self.model(input_ids=tokens, use_cache=False).logits
        for handle in handles:
            handle.remove()
        seen["scale"] = (seen["residual"].pow(2).mean(-1) + self.eps).sqrt()
        return seen

    def head_outputs(self, z, layer):
        """[B, S, H, D]"""
        w_o = self.inner.layers[layer].self_attn.o_proj.weight.detach()
        per_head = z.unflatten(-1, (self.heads, self.d_head))
        return torch.einsum("bshe,dhe->bshd", per_head, w_o.unflatten(-1, (self.heads, self.d_head)))


def centred_logit(logits, targets):
    """[B, S]: the target's logit less the mean logit."""
    return logits.gather(-1, targets[..., None])[..., 0] - logits.mean(-1)


def measure(model_path: Path, run: Path, out: Path, names):
    m = Measurement(load(model_path))
    tokens_table = pq.read_table(run / "tables" / "tokens")
    pairs_table = pq.read_table(run / "tables" / "pairs")
    prompts = max(tokens_table["prompt"].to_pylist()) + 1
    tokens = torch.tensor(tokens_table["token"].to_pylist()).view(prompts, -1)
    samples = max(pairs_table["sample"].to_pylist()) + 1
    partner = torch.tensor(pairs_table["partner"].to_pylist()).view(samples, prompts)
    targets = tokens[:, 1:]
    positions = targets.shape[1]

    clean = m.run(tokens)
    u = (m.gamma * m.centred[targets])
    direction = u / clean["scale"][:, :-1, None]

    def de(c):
        return (c[:, :-1] * direction).sum(-1)

    def de_heads(z, layer):
        return (m.head_outputs(z, layer)[:, :-1] * direction[:, :, None]).sum(-1)

    clean_heads = [de_heads(clean["z"][l], l) for l in range(m.layers)]
    clean_mlps = [de(clean["mlp"][l]) for l in range(m.layers)]
    clean_logit = centred_logit(clean["logits"][:, :-1], targets)
    total = de(clean["embed"]) + sum(h.sum(-1) for h in clean_heads) + sum(clean_mlps)
    # Hugging Face's RMS norm computes in float32 whatever the model's type, so not to float64 rounding.
    assert (total - clean_logit).abs().max() < 1e-4, "direct effects must sum to the logit"

    rows = {k: [] for k in [
        "ablation", "layer", "head", "prompt", "position", "logit_change", "direct_effect", "ablated_direct_effect",
        "self_repair", "repair_attention", "repair_mlp", "repair_norm", "repair_by_erasers", "norm_scale",
        "ablated_norm_scale", "ablated_residual_norm"]}
    grid = torch.meshgrid(torch.arange(prompts), torch.arange(positions), indexing="ij")
    for kind in ["mean", "resample", "zero"]:
        for name in names:
            layer, head = map(int, name[1:].split("H"))
            span = slice(head * m.d_head, (head + 1) * m.d_head)
            z = clean["z"][layer][..., span]
            replacements = {
                "zero": [torch.zeros_like(z)],
                "mean": [z.mean((0, 1), keepdim=True).expand_as(z)],
                "resample": [z[partner[k]] for k in range(samples)],
            }[kind]
            mean = {}
            for replacement in replacements:
                ablated = m.run(tokens, (layer, head, replacement))
                heads = [de_heads(ablated["z"][l], l) for l in range(m.layers)]
                mlps = [de(ablated["mlp"][l]) for l in range(m.layers)]
                d_heads = torch.stack([a - b for a, b in zip(heads, clean_heads)])
                d_heads[layer, ..., head] = 0
                d_mlps = torch.stack([a - b for a, b in zip(mlps, clean_mlps)])
                v = {}
                v["logit_change"] = centred_logit(ablated["logits"][:, :-1], targets) - clean_logit
                v["direct_effect"] = clean_heads[layer][..., head]
                v["ablated_direct_effect"] = heads[layer][..., head]
                v["self_repair"] = v["logit_change"] - (v["ablated_direct_effect"] - v["direct_effect"])
                v["repair_attention"] = d_heads.sum((0, -1))
                v["repair_mlp"] = d_mlps.sum(0)
                s, s2 = clean["scale"][:, :-1], ablated["scale"][:, :-1]
                v["repair_norm"] = (ablated["residual"][:, :-1] * u).sum(-1) * (1 / s2 - 1 / s)
                erasing_heads = torch.stack([h < 0 for h in clean_heads])
                erasing_mlps = torch.stack([h < 0 for h in clean_mlps])
                v["repair_by_erasers"] = (d_heads * erasing_heads).sum((0, -1)) + (d_mlps * erasing_mlps).sum(0)
                v["norm_scale"], v["ablated_norm_scale"] = s, s2
                v["ablated_residual_norm"] = ablated["residual"][:, :-1].norm(dim=-1)
                gap = v["self_repair"] - v["repair_attention"] - v["repair_mlp"] - v["repair_norm"]
                assert gap.abs().max() < 1e-4, "the causes must sum to the self-repair"
                for k, x in v.items():
                    mean[k] = mean.get(k, 0) + x / len(replacements)
            n = prompts * positions
            rows["ablation"] += [kind] * n
            rows["layer"] += [layer] * n
            rows["head"] += [head] * n
            rows["prompt"] += grid[0].flatten().tolist()
            rows["position"] += grid[1].flatten().tolist()
            for k, x in mean.items():
                rows[k] += x.flatten().tolist()
            print(kind, name, flush=True)

    out.mkdir(parents=True, exist_ok=True)

    def write(name, columns):
        ints = {"layer", "head", "prompt", "position", "token", "component"}
        table = pa.table({
            k: pa.array(v, pa.string() if k in ("ablation", "component") else pa.uint32() if k in ints else pa.float32())
            for k, v in columns.items()})
        pq.write_table(table, out / f"{name}.parquet", compression="zstd", use_byte_stream_split=False)

    write("ablations", rows)
    key = {"prompt": grid[0].flatten().tolist(), "position": grid[1].flatten().tolist()}
    log_prob = clean["logits"][:, :-1].log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    write("clean", key | {
        "logit": clean_logit.flatten().tolist(), "log_prob": log_prob.flatten().tolist(),
        "norm_scale": clean["scale"][:, :-1].flatten().tolist(),
        "residual_norm": clean["residual"][:, :-1].norm(dim=-1).flatten().tolist()})
    columns = {"component": [], "layer": [], "head": [], "prompt": [], "position": [], "direct_effect": []}

    def add(component, layer, head, values):
        n = values.numel()
        columns["component"] += [component] * n
        columns["layer"] += [layer] * n
        columns["head"] += [head] * n
        columns["prompt"] += key["prompt"]
        columns["position"] += key["position"]
        columns["direct_effect"] += values.flatten().tolist()

    add("embed", None, None, de(clean["embed"]))
    for l in sorted({int(n[1:].split("H")[0]) for n in names}):
        for h in range(m.heads):
            add("head", l, h, clean_heads[l][..., h])
        add("mlp", l, None, clean_mlps[l])
    write("direct_effects", columns)

    # A sample of the whole logits: every 97th token of the vocabulary (all of a small one), at every 5th position.
    vocab = m.w_u.shape[0]
    step = 97 if vocab > 4096 else 1
    kept = {"prompt": [], "position": [], "token": [], "logit": []}
    for p in range(min(prompts, 2)):
        for s in range(0, tokens.shape[1], 5):
            ids = range(0, vocab, step)
            kept["prompt"] += [p] * len(ids)
            kept["position"] += [s] * len(ids)
            kept["token"] += list(ids)
            kept["logit"] += clean["logits"][p, s, ::step].tolist()
    write("logits", kept)
    pq.write_table(tokens_table.select(["prompt", "position", "token"]), out / "tokens.parquet")
    pq.write_table(pairs_table, out / "pairs.parquet")
    (out / "versions.txt").write_text(
        f"torch {torch.__version__}\ntransformers {transformers.__version__}\npyarrow {pa.__version__}\n"
        f"heads {' '.join(names)}\n")


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    if command == "tiny-model":
        tiny_model(Path(rest[0]))
    elif command == "tokenizer":
        tokenizer_ids(Path(rest[0]), Path(rest[1]))
    elif command == "measure":
        measure(Path(rest[0]), Path(rest[1]), Path(rest[2]), rest[3:])
    else:
        sys.exit(__doc__)
