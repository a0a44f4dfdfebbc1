"""Makes the expected values of the tests with an independent, plain implementation of what the pipeline measures: see
measurement.py. It reads a run's `tokens` and `pairs` tables (which prompts, which partners) and nothing else of it.

    pip install torch transformers accelerate gguf tokenizers pyarrow
    python tests/reference/reference.py tiny-model tests/fixtures/tiny-llama
    python tests/reference/reference.py tokenizer  MODEL.gguf tests/fixtures/smollm2/tokenizer.json
    python tests/reference/reference.py measure    MODEL RUN tests/fixtures/NAME L0H1 L2H0 …
    python tests/reference/reference.py extended   MODEL RUN tests/fixtures/NAME/extended L0H1 MLP1 BLOCK1 NEURONS2 …
    python tests/reference/reference.py extended   all
    python tests/reference/reference.py prompts    MODEL PROMPTS.jsonl tests/fixtures/NAME/prompts mean zero
    python tests/reference/reference.py prompts    MODEL RUN tests/fixtures/NAME/prompts mean resample zero

RUN is the folder of a run, or one with `tokens.parquet` and `pairs.parquet` (and, of a prompt set, `targets.parquet`),
such as tests/fixtures/tiny-llama/expected.

`measure` writes into its folder: `tokens.parquet` and `pairs.parquet` (the inputs), `clean.parquet`,
`direct_effects.parquet`, `ablations.parquet` and `logits.parquet` (the expected values).

`extended` ablates what is named (L0H1, MLP1, ATTENTION1, BLOCK1), and measures the neurons of the layers that are named
(NEURONS2): see extended.py. `extended all` makes those of EXTENDED below, which is what is tested.

`prompts` writes the inputs too. Of a file of prompts, it draws up its own partners (the next prompt of equal length).
For what is tested: `prompts tests/fixtures/tiny-llama tests/fixtures/prompts.jsonl tests/fixtures/tiny-llama/prompts`.

Made with torch 2.15.0, transformers 5.23.0, tokenizers 0.23.3, gguf 0.19.0, pyarrow (see versions.txt beside each).
"""

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers

from components import Component, Extended
from extended import write_extended
from measurement import Effects, Measurement, input_table, inputs, load
from prompt_set import write_prompts

FIXTURES = Path(__file__).parent.parent / "fixtures"
# Components whose top tokens do not tie (prompts that begin alike have equal effects there).
EXTENDED = {
    "tiny-llama": "L0H0 L1H0 L2H2 MLP0 ATTENTION1 ATTENTION2 BLOCK0 NEURONS1 NEURONS2",
    "families/gpt2": "L0H0 L1H0 L2H3 MLP1 ATTENTION0 BLOCK1 BLOCK2 NEURONS2",
    "families/gemma2": "L0H3 L1H2 L2H2 MLP1 MLP2 ATTENTION1 BLOCK1 NEURONS1 NEURONS2",
    "families/bloom": "L0H1 L1H3 L2H2 MLP1 ATTENTION1 BLOCK1 NEURONS2",
    "families/granite": "L0H1 L1H3 L2H2 MLP1 ATTENTION1 BLOCK1 NEURONS2",
    "families/olmo2": "L0H3 L1H3 L2H3 MLP1 MLP2 ATTENTION1 BLOCK1 NEURONS2",
    "families/qwen2_moe": "L0H1 L1H3 L2H2 MLP1 ATTENTION1 BLOCK1 NEURONS1 NEURONS2",
    "families/gpt_oss": "L0H1 L1H3 L2H2 MLP1 ATTENTION1 BLOCK1 NEURONS2",
    "families/gpt_neox": "L0H1 L1H3 L2H2 MLP1 MLP2 ATTENTION1 BLOCK1 NEURONS2",
}


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


def measure(model_path: Path, run: Path, out: Path, names):
    """Expected values for the prompts and partners of a run."""
    tokens_table, pairs_table = input_table(run, "tokens"), input_table(run, "pairs")
    effects = Effects(Measurement(load(model_path)), *inputs(tokens_table, pairs_table))
    effects.write(out, names, layers=sorted({int(n[1:].split("H")[0]) for n in names}), logits_of=2)
    pq.write_table(tokens_table.select(["prompt", "position", "token"]), out / "tokens.parquet")
    pq.write_table(pairs_table, out / "pairs.parquet")
    (out / "versions.txt").write_text(
        f"torch {torch.__version__}\ntransformers {transformers.__version__}\npyarrow {pa.__version__}\n"
        f"heads {' '.join(names)}\n")


def extended(model_path: Path, run: Path, out: Path, names):
    effects = Extended(Measurement(load(model_path)), *inputs(input_table(run, "tokens"), input_table(run, "pairs")))
    parsed = [Component.parse(name) for name in names]
    neuron_layers = [c.layer for c in parsed if c.kind == "neurons"]
    write_extended(effects, [c for c in parsed if c.kind != "neurons"], neuron_layers, out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    command, *rest = sys.argv[1:]
    if command == "tiny-model":
        tiny_model(Path(rest[0]))
    elif command == "tokenizer":
        tokenizer_ids(Path(rest[0]), Path(rest[1]))
    elif command == "measure":
        measure(Path(rest[0]), Path(rest[1]), Path(rest[2]), rest[3:])
    elif command == "extended" and rest == ["all"]:
        for name, parts in EXTENDED.items():
            folder = FIXTURES / name
            extended(folder, FIXTURES / "tiny-llama" / "expected", folder / "extended", parts.split())
    elif command == "extended":
        extended(*map(Path, rest[:3]), rest[3:])
    elif command == "prompts":
        write_prompts(*map(Path, rest[:3]), rest[3:] or ["mean", "zero"])
    else:
        sys.exit(__doc__)
