"""Writes the tables of a large made-up run, to time `analyze` on: GPT-2 small's shape, by default 144 heads on 781
prompts of 128 tokens (14.3 million rows of `ablations`). The numbers are random, but satisfy every check, and the files
are laid out as src/store/table_writer.rs lays them out.

    pip install numpy pyarrow
    python tests/reference/large_run.py RUN [PROMPTS [ABLATION …]]
    cargo bench --bench analyze -- RUN
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

LAYERS, HEADS, POSITIONS, TOP_FRACTION = 12, 12, 127, 0.02
# Prompts in a file of `ablations`, of which a run of a larger model has fewer.
SHARD = 64
TARGET = ["ablation", "strength", "hold", "hold_value", "hold_own_mlp", "component", "name", "layer", "head"]
TOKEN, WHAT, REPAIRER = ["prompt", "position"], ["component", "name", "layer", "head"], ["repairer", "repairer_name"]
REPAIRER += ["repairer_layer", "repairer_head"]
NEURONS = ["neuron_layer", "subset", "expert"]
# The columns of each key, in their order.
KEYS = {"model": ["name"], "tokens": TOKEN, "pairs": ["sample", "prompt"], "clean": TOKEN, "direct_effects": TOKEN + WHAT}
KEYS |= {"top_tokens": WHAT + ["rank"], "ablations": TARGET + TOKEN, "component_repairs": TARGET + TOKEN + ["rank"]}
KEYS |= {"neuron_repairs": TARGET + TOKEN + NEURONS + ["rank"], "neuron_totals": TARGET + TOKEN + NEURONS}
KEYS |= {"repair_graph": TARGET + ["subset"] + REPAIRER, "neuron_curves": TARGET + NEURONS + ["rank"]}
KEYS |= {"self_additions": WHAT[1:] + ["added", "multiple"] + TOKEN, "targets": ["prompt"], "rounding": ["measured"]}
KEYS |= {"stream_additions": WHAT[1:] + ["added_at", "multiple"] + TOKEN}
KEYS |= {"head_similarity": WHAT[1:] + ["other_name", "other_layer", "other_head"]}
# What may be null: a reader that knows that the rest may not has less to do.
NULLABLE = {"next_token", "document", "wrong", "layer", "head", "repairer_head", "standard_error", "own_change", "expert"}
COUNTS = {"tokens", "rows", "layers", "heads", "d_model", "d_mlp", "vocab"}
KEPT, D_MLP = 10, 3072
# Of iterative inference: prompts, and what an output is multiplied by.
ITERATIVE, MULTIPLES = 8, [1, 3, 5]
random = np.random.default_rng(0)


def named(component, layer, head) -> pa.Array:
    """L9H6, MLP9, BLOCK9, EMBED or CONSTANT."""
    flat = lambda column: column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    number = lambda column: np.asarray(flat(column).cast(pa.int64()).fill_null(-1))
    kinds = pc.dictionary_encode(flat(component))
    codes = (number(kinds.indices) * 1000 + number(layer) + 1) * 1000 + number(head) + 1
    different, indices = np.unique(codes, return_inverse=True)
    words = []
    for code in different.tolist():
        kind, l, h = kinds.dictionary[code // 1_000_000].as_py(), code // 1000 % 1000 - 1, code % 1000 - 1
        words.append(f"L{l}H{h}" if h >= 0 else f"{kind.upper()}{l if l >= 0 else ''}")
    return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), pa.array(words))


def completed(name: str, columns: dict) -> dict:
    """The columns in the table's order and types, those added that are the same in every run without special settings."""
    rows, columns = len(next(iter(columns.values()))), dict(columns)
    key = KEYS[name]
    if "ablation" in key:
        fixed = {"strength": 1.0, "hold": "none", "hold_value": "clean", "hold_own_mlp": True, "component": "head"}
        columns |= {n: pa.repeat(pa.scalar(v), rows) for n, v in fixed.items() if n not in columns}
    if "neuron_layer" in key:
        columns |= {"subset": text("top", rows), "expert": pa.nulls(rows, pa.int32())}
    for kind, prefix in [("component", ""), ("repairer", "repairer_"), ("component", "other_")]:
        if f"{prefix}layer" in columns and (prefix or "name" in key):
            place = (columns[f"{prefix}layer"], columns[f"{prefix}head"])
            columns[f"{prefix}name"] = named(columns.get(kind, text("head", rows)), *place)
    for column, values in columns.items():
        if pa.types.is_integer(values.type):
            columns[column] = values.cast(pa.int64() if column in COUNTS else pa.int32())
    return {n: columns[n] for n in key} | columns


def sort_order(key: list[str]) -> list[int]:
    """A component's name comes after its layer and head."""
    order, name = [], []
    for i, column in enumerate(key):
        if not column.endswith(("layer", "head")):
            order, name = order + name, []
        if column.endswith("name"):
            name = [i]
        else:
            order.append(i)
    return order + name


def write(run: Path, name: str, columns: dict, file: str | None = None, page: int = 8 * 1024, group: int = 256 * 1024):
    table = pa.table(completed(name, columns))
    floats = [f.name for f in table.schema if f.type == pa.float32()]
    pairs = {"schema_version": "3", "table": name, "run_id": "made-up", "fingerprint": "made-up", "commit": "0"}
    fields = [field.with_nullable(field.name in NULLABLE) for field in table.schema]
    table = table.cast(pa.schema(fields, {f"pipeline.{k}": v for k, v in pairs.items()}))
    path = run / "tables" / name / f"{file or name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=3,
        row_group_size=group,
        max_rows_per_page=page,
        write_batch_size=1024,
        write_page_index=True,
        use_dictionary=[f.name for f in table.schema if f.name not in floats and f.type != pa.bool_()],
        column_encoding={f: "BYTE_STREAM_SPLIT" for f in floats},
        sorting_columns=[pq.SortingColumn(i) for i in sort_order(KEYS[name])],
    )


def text(value: str, rows: int):
    return pa.repeat(pa.scalar(value), rows)


def floats(values) -> pa.Array:
    return pa.array(np.ascontiguousarray(values, dtype=np.float32))


def small(value: int | None, rows: int):
    return pa.repeat(pa.scalar(value, pa.int32()), rows)


def ints(values):
    return pa.array(np.ascontiguousarray(values, dtype=np.int32))


def concat(rows: list[dict]) -> dict:
    join = lambda parts: pa.chunked_array([c for p in parts for c in (p.chunks if isinstance(p, pa.ChunkedArray) else [p])])
    return {name: join([row[name] for row in rows]) for name in rows[0]}


def direct_effects(run: Path, prompts: int) -> np.ndarray:
    """By token and component: heads layer after layer, MLPs. Also writes `clean`, whose logits they sum to."""
    components = [("constant", None, None), ("embed", None, None)]
    components += [("head", l, h) for l in range(LAYERS) for h in range(HEADS)]
    components += [("mlp", l, None) for l in range(LAYERS)]
    effects = (random.standard_normal((prompts * POSITIONS, len(components))) * 0.3).astype(np.float32)
    for first in range(0, prompts, 32):
        count = min(32, prompts - first)
        rows = effects[first * POSITIONS : (first + count) * POSITIONS]
        tokens = len(rows)
        prompt, position = np.divmod(np.arange(tokens), POSITIONS)
        key = {"prompt": ints(prompt + first), "position": ints(position)}
        clean = {
            "logit": floats(rows.astype(np.float64).sum(1)),
            "log_prob": floats(-random.exponential(3.0, tokens)),
            "norm_scale": floats(random.uniform(5, 20, tokens)),
            "residual_norm": floats(random.uniform(100, 500, tokens)),
        }
        write(run, "clean", key | clean, f"{first // 32:05}")
        repeat = lambda of, kind: pa.array([c[of] for c in components] * tokens, kind)
        columns = {k: ints(np.repeat(np.asarray(v), len(components))) for k, v in key.items()}
        columns |= {"component": repeat(0, pa.string()), "layer": repeat(1, pa.int32()), "head": repeat(2, pa.int32())}
        write(run, "direct_effects", columns | {"direct_effect": floats(rows.reshape(-1))}, f"{first // 32:05}")
    return effects[:, 2:]


def repeated(columns: dict, times: int) -> dict:
    return {name: column.take(pa.array(np.repeat(np.arange(len(column)), times))) for name, column in columns.items()}


def repairers(key: dict, total: np.ndarray) -> tuple[dict, dict, dict]:
    """Rows of the tables on top tokens. The last MLP is the one that repairs, all of `total`; the others just change."""
    n = len(total)
    rank = np.tile(np.arange(1, KEPT + 1), n)
    change = np.sort(random.standard_normal((n, KEPT)) * 0.1)[:, ::-1]
    some = {"direct_effect": floats(random.normal(-0.05, 0.1, n * KEPT)), "change": floats(change.reshape(-1))}
    whose = {
        "repairer": pa.array(["mlp" if r == 1 else "head" for r in rank]),
        "repairer_layer": small(LAYERS - 1, n * KEPT),
        "repairer_head": pa.array(rank.astype(np.int32), mask=rank == 1),
    }
    many = repeated(key, KEPT)
    components = many | {"rank": ints(rank)} | whose | some
    neuron = {"rank": ints(rank), "neuron": ints(random.integers(0, D_MLP, n * KEPT))}
    neurons = many | {"neuron_layer": small(LAYERS - 1, n * KEPT)} | neuron | some
    totals = {"total_change": floats(total), "positive_change": floats(np.abs(total) + 1)}
    totals |= {"absolute_change": floats(np.abs(total) + 2), "top_percent_change": floats(np.abs(total) * 0.5)}
    return components, neurons, key | {"neuron_layer": small(LAYERS - 1, n)} | totals


def repair_graph(run: Path, sums: dict):
    """`sums`: tokens and sum of the change by ablation, layer, head and subset, which the last MLP changes; what the others
    do sums to zero. Blocks are there too, so that skipped blocks can be compared with ablated heads."""
    rows = []
    blocks = [("zero", layer, None, subset) for layer in range(LAYERS) for subset in ["all", "top"]]
    for key in sorted(sums) + blocks:
        kind, layer, head, subset = key
        later = [("head", l, h) for l in range(layer + 1, LAYERS) for h in range(HEADS)]
        later += [("mlp", l, None) for l in range(layer + (head is None), LAYERS)]
        if not later:
            continue
        tokens, total = sums.get(key, (1, 0.0))
        others = random.normal(0, 0.02, len(later) - 1)
        changes = [*(others - others.mean() if len(others) else []), total / tokens]
        component = "block" if head is None else "head"
        rows += [
            (kind, "none", component, layer, head, subset, *who, tokens, change, abs(change) * 0.1)
            for who, change in sorted(zip(later, changes), key=lambda r: (r[0][0], r[0][1], r[0][2] or 0))
        ]
    names = "ablation hold component layer head subset repairer repairer_layer repairer_head tokens mean_change"
    names = names.split() + ["standard_error"]
    types = dict.fromkeys(["layer", "head", "repairer_layer", "repairer_head", "tokens"], pa.int64())
    types |= dict.fromkeys(["mean_change", "standard_error"], pa.float32())
    rows.sort(key=lambda r: tuple(-1 if v is None else v for v in r[:9]))
    write(run, "repair_graph", {n: pa.array([r[i] for r in rows], types.get(n)) for i, n in enumerate(names)})


def of_heads_and_neurons(run: Path, kinds: list[str], prompts: int):
    """Tables that do not grow with the corpus: curves of neurons, additions to what heads read, likeness of heads."""
    heads = [(l, h) for l in range(LAYERS) for h in range(HEADS)]
    n = len(heads) * D_MLP
    share = np.tile(np.cumsum(1 / np.arange(1, D_MLP + 1)), len(heads)) / np.sum(1 / np.arange(1, D_MLP + 1))
    rank = np.tile(np.arange(1, D_MLP + 1, dtype=np.int32), len(heads))
    curves = []
    for kind in kinds:
        key = {"ablation": text(kind, n)} | {
            name: pa.array(np.repeat(np.array([h[i] for h in heads], np.int32), D_MLP)) for i, name in enumerate(["layer", "head"])
        }
        key |= {"neuron_layer": small(LAYERS - 1, n), "rank": pa.array(rank)}
        key |= {"tokens": ints(np.full(n, int(TOP_FRACTION * prompts * POSITIONS))), "cumulative_share": floats(share)}
        key |= {name: floats(share) for name in ["above_50", "above_10", "above_5", "above_2_5", "above_1"]}
        curves.append(key | {"direct_effect": floats(random.normal(0, 0.01, n))})
    write(run, "neuron_curves", concat(curves))

    few = min(ITERATIVE, prompts) * POSITIONS
    additions = []
    for l, h in heads:
        for added in ["own", "random_direction", "random_head"]:
            for multiple in MULTIPLES:
                effect = random.normal(0, 0.3, few)
                prompt, position = np.divmod(np.arange(few), POSITIONS)
                key = {"layer": small(l, few), "head": small(h, few), "added": text(added, few)}
                key |= {"multiple": pa.array(np.full(few, float(multiple))), "prompt": ints(prompt), "position": ints(position)}
                changed = floats(effect * 1.1 + random.normal(0, 0.1, few))
                additions.append(key | {"direct_effect": floats(effect), "new_direct_effect": changed})
    write(run, "self_additions", concat(additions))

    pairs = [(*a, *b) for i, a in enumerate(heads) for b in heads[i + 1 :]]
    columns = {n: pa.array([p[i] for p in pairs], pa.int32()) for i, n in enumerate(["layer", "head", "other_layer", "other_head"])}
    columns |= {"tokens": ints(np.full(len(pairs), prompts * POSITIONS))}
    columns |= {n: floats(random.uniform(-0.3, 0.9, len(pairs))) for n in ["cosine", "cosine_without_token"]}
    write(run, "head_similarity", columns)


def stream_additions(run: Path, prompts: int, effects: np.ndarray, top: np.ndarray):
    """A head's output added before every block, at the head's top tokens. The clean effect is `effects`."""
    rows = []
    for head in range(LAYERS * HEADS):
        tokens = np.flatnonzero(top[: prompts * POSITIONS, head])
        n, layer = len(tokens), head // HEADS
        for added_at in range(LAYERS):
            for multiple in MULTIPLES:
                de = effects[tokens, head].astype(np.float64)
                attention, mlp, norm = (de * random.normal(mean, 0.2, n) for mean in [-0.1, -0.2, -0.3])
                key = {"layer": small(layer, n), "head": small(head % HEADS, n), "added_at": small(added_at, n)}
                key |= {"multiple": pa.array(np.full(n, float(multiple)))}
                key |= {"prompt": ints(tokens // POSITIONS), "position": ints(tokens % POSITIONS)}
                response = attention + mlp + norm
                changes = {"direct_effect": de, "logit_change": multiple * de + response, "response": response,
                           "response_attention": attention, "response_mlp": mlp, "response_norm": norm}  # fmt: skip
                own = pa.array(np.zeros(n, np.float32), mask=np.full(n, added_at > layer))
                rows.append(key | {name: floats(values) for name, values in changes.items()} | {"own_change": own})
    write(run, "stream_additions", concat(rows))


def ablations(run: Path, prompts: int, kinds: list[str], effects: np.ndarray, top: np.ndarray):
    sums = {}
    for first in range(0, prompts, SHARD):
        count = min(SHARD, prompts - first)
        n = count * POSITIONS
        prompt, position = np.divmod(np.arange(n), POSITIONS)
        rows, repairs = [], []
        scale = random.uniform(5, 20, n)
        for kind in kinds:
            for layer in range(LAYERS):
                for head in range(HEADS):
                    de = effects[first * POSITIONS : first * POSITIONS + n, layer * HEADS + head].astype(np.float64)
                    after = 0 * de if kind == "zero" else de * random.normal(0.1, 0.1, n)
                    attention = 0 * de if layer == LAYERS - 1 else de * random.normal(0.15, 0.3, n)
                    mlp, norm = de * random.normal(0.2, 0.3, n), de * random.normal(0.1, 0.1, n)
                    repair = attention + mlp + norm
                    key = {
                        "ablation": text(kind, n), "hold": text("none", n), "component": text("head", n),
                        "layer": small(layer, n), "head": small(head, n),
                        "prompt": ints(prompt + first), "position": ints(position),
                    }  # fmt: skip
                    here = top[first * POSITIONS : first * POSITIONS + n, layer * HEADS + head]
                    for subset, mask in [("all", here | True), ("top", here)]:
                        count_so_far, total = sums.get((kind, layer, head, subset), (0, 0.0))
                        added = (attention + mlp)[mask]
                        sums[kind, layer, head, subset] = (count_so_far + len(added), total + added.sum())
                    repairs.append(repairers({k: v.filter(pa.array(here)) for k, v in key.items()}, added))
                    columns = key | {
                        "logit_change": floats(repair + after - de), "direct_effect": floats(de),
                        "ablated_direct_effect": floats(after), "self_repair": floats(repair),
                        "repair_attention": floats(attention), "repair_mlp": floats(mlp), "repair_norm": floats(norm),
                        "repair_write_norm": floats(0 * norm), "repair_write_norm_own": floats(0 * norm),
                        "repair_by_erasers": floats(mlp * 0.7), "norm_scale": floats(scale),
                        "ablated_norm_scale": floats(scale * random.normal(0.98, 0.02, n)),
                        "ablated_residual_norm": floats(scale * random.normal(27, 0.5, n)),
                    }  # fmt: skip
                    rows.append(columns)
        # A row group a layer, a page a head (or as many heads as a page takes).
        page = 8 * 1024 // n * n or 8 * 1024
        write(run, "ablations", concat(rows), f"{first // SHARD:05}", page, HEADS * n)
        for i, name in enumerate(["component_repairs", "neuron_repairs", "neuron_totals"]):
            write(run, name, concat([r[i] for r in repairs]), f"{first // SHARD:05}")
    repair_graph(run, sums)


def top_tokens(run: Path, effects: np.ndarray) -> np.ndarray:
    """Whether a token is one of a head's top tokens, by token and head."""
    top = np.zeros((len(effects), LAYERS * HEADS), bool)
    count = max(1, int(TOP_FRACTION * len(effects)))
    rows = []
    for layer in range(LAYERS):
        for head in range(HEADS):
            effect = effects[:, layer * HEADS + head]
            order = np.argsort(-effect, kind="stable")[:count]
            top[order, layer * HEADS + head] = True
            rows.append(
                {
                    "component": text("head", count), "layer": small(layer, count), "head": small(head, count),
                    "rank": ints(np.arange(1, count + 1)), "prompt": ints(order // POSITIONS),
                    "position": ints(order % POSITIONS), "direct_effect": floats(effect[order]),
                }  # fmt: skip
            )
    write(run, "top_tokens", concat(rows))
    return top


def main(run: Path, prompts: int, kinds: list[str]):
    one = lambda values, kind: pa.array([values], kind)
    names = {"name": "made-up", "architecture": "gpt2"}
    sizes = {"layers": (LAYERS, pa.int64()), "heads": (HEADS, pa.int64()), "d_model": (768, pa.int64())}
    sizes |= {"d_mlp": (3072, pa.int64()), "vocab": (50257, pa.int64())}
    rest = {"dtype": "F32", "source": "made-up", "revision": "", "sha256": ""}
    columns = {k: one(v, pa.string()) for k, v in names.items()} | {k: one(*v) for k, v in sizes.items()}
    write(run, "model", columns | {k: one(v, pa.string()) for k, v in rest.items()})
    n = prompts * (POSITIONS + 1)
    prompt, position = np.divmod(np.arange(n), POSITIONS + 1)
    token = random.integers(0, 50257, n).astype(np.int32)
    following = pa.array(np.roll(token, -1), mask=position == POSITIONS)
    words = {"token": ints(token), "text": pa.array([f" t{t}" for t in token]), "next_token": following}
    write(run, "tokens", {"prompt": ints(prompt), "position": ints(position)} | words)
    numbers = np.arange(prompts)
    write(run, "pairs", {"sample": small(0, prompts), "prompt": ints(numbers), "partner": ints(np.roll(numbers, 1))})
    effects = direct_effects(run, prompts)
    top = top_tokens(run, effects)
    ablations(run, prompts, kinds, effects, top)
    of_heads_and_neurons(run, kinds, prompts)
    stream_additions(run, min(ITERATIVE, prompts), effects, top)
    # No prompt set.
    write(run, "targets", {name: ints([]) for name in ["prompt", "position", "answer", "wrong"]})
    write(run, "rounding", {"measured": pa.array([], pa.string()), "tolerance": floats([])})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 781, sys.argv[3:] or ["resample"])
