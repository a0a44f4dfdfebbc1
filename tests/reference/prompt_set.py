"""Expected values of a prompt set: prompts of several lengths, each measured at one position by the logit of its
answer, less that of a wrong answer. Prompts of equal length are run together, without padding.
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer

from components import COLUMNS, Component, Extended, check
from measurement import Answers, Measurement, input_table, load, write_table

INPUTS = {
    "tokens": ["prompt", "position", "token"],
    "targets": ["prompt", "position", "answer", "wrong"],
    "pairs": ["sample", "prompt", "partner"],
}


def encoded(jsonl: Path, tokenizer: Path, bos: int):
    """The tables `tokens`, `targets` and `pairs` of a file of prompts, as dictionaries of columns."""
    tokenizer = Tokenizer.from_file(str(tokenizer))
    rows = [json.loads(line) for line in jsonl.read_text().splitlines()]
    prompts = [[bos] + tokenizer.encode(row["text"], add_special_tokens=False).ids for row in rows]

    def token_of(text):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert len(ids) == 1, f"{text!r} must be one token"
        return ids[0]

    tokens = [(p, s, token) for p, prompt in enumerate(prompts) for s, token in enumerate(prompt)]
    targets = {
        "prompt": list(range(len(rows))),
        "position": [row.get("position", len(prompt) - 1) for row, prompt in zip(rows, prompts)],
        "answer": [token_of(row["answer"]) for row in rows],
        "wrong": [token_of(row["wrong"]) if "wrong" in row else None for row in rows],
    }
    # Each prompt's partner is the next of its length.
    partner = {}
    for group in by_length(prompts):
        assert len(group) > 1, "a partner must have the same length"
        partner |= dict(zip(group, group[1:] + group[:1]))
    pairs = {"sample": [0] * len(rows), "prompt": targets["prompt"], "partner": [partner[p] for p in targets["prompt"]]}
    return dict(zip(["prompt", "position", "token"], map(list, zip(*tokens)))), targets, pairs


def by_length(prompts):
    """Numbers of prompts, one list a length."""
    return [[p for p, prompt in enumerate(prompts) if len(prompt) == n] for n in sorted({len(p) for p in prompts})]


def groups(m: Measurement, tokens, targets, pairs):
    """One measurement for each length; all know of each other."""
    prompts = [[] for _ in targets["prompt"]]
    for p, token in zip(tokens["prompt"], tokens["token"]):
        prompts[p].append(token)
    samples = max(pairs["sample"]) + 1
    partner = torch.tensor(pairs["partner"]).view(samples, len(prompts))
    found = []
    for group in by_length(prompts):
        answers = Answers(group, *([targets[name][p] for p in group] for name in ("position", "answer", "wrong")))
        within = [[group.index(partner[k, p]) for p in group] for k in range(samples)]
        found.append(Extended(m, torch.tensor([prompts[p] for p in group]), torch.tensor(within), answers))
    for e in found:
        e.siblings = found
    return found


def write_prompts(model: Path, source: Path, out: Path, kinds):
    """`source` is a file of prompts, or a folder that has tables `tokens`, `targets` and `pairs`."""
    m = Measurement(load(model))
    if source.suffix == ".jsonl":
        inputs = encoded(source, model / "tokenizer.json", m.model.config.bos_token_id)
    else:
        inputs = [input_table(source, name).to_pydict() for name in INPUTS]
    out.mkdir(parents=True, exist_ok=True)
    for (name, columns), table in zip(INPUTS.items(), inputs):
        write_table(out / f"{name}.parquet", [{column: table[column] for column in columns}])

    found = groups(m, *inputs)
    heads = [Component("head", l, h) for l in range(m.layers) for h in range(m.heads)]
    whole = [Component(kind, l) for kind in ("mlp", "attention", "block") for l in range(m.layers)]
    for e in found:
        check(e, heads + whole)
    direct_effects = [part for e in found for part in e.direct_effects_table(range(m.layers))]
    write_table(out / "direct_effects.parquet", direct_effects)
    write_table(out / "clean.parquet", [part for e in found for part in e.clean_table()])
    ablations = []
    for kind in kinds:
        for c in heads + whole:
            key = {"ablation": kind, "hold": "none"} | c.key()
            for e in found:
                outcome = e.outcome_of(kind, c)
                ablations.append(e.rows(key, {name: outcome[name] for name in COLUMNS}))
    write_table(out / "ablations.parquet", ablations)
    for e in found:
        print(f"{len(e.tokens)} prompts of {e.tokens.shape[1]}:", *(f"{k} {v:.1e}" for k, v in e.residuals.items()))
