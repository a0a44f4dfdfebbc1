"""What the pipeline measures beyond one ablated head: other components, kinds and holds, who repairs, which neurons,
heads that read their own output, what becomes of a head's output that is added before a block, and how similar heads
are. What an ablation is, is in components.py.

What hangs on which of two numbers is larger (a rank, a share above a threshold, a median by rank) is left out of the
tables where they are within TIE of each other, because float32 may decide otherwise; how many rows that are is printed.
"""

from collections import defaultdict
from pathlib import Path

import torch

from components import DISTRIBUTION, ERASES_BELOW, KINDS, Component, Extended, check
from measurement import write_table

HELD_KINDS = ["mean", "resample", "zero"]
HOLDS = ["erasers", "last_mlp", "L2H1", "MLP1"]
"""Of heads before the last layer."""
MULTIPLES = [1, 3, 5]
TOP_REPAIRS = 10
SHARES = {"above_50": 0.5, "above_10": 0.1, "above_5": 0.05, "above_2_5": 0.025, "above_1": 0.01}
WRITTEN_PROMPTS = 4
"""Rows a token are written of the first prompts only, to keep the fixtures small; sums and ranks are over all."""
TIE = 1e-5


def ranked(values):
    """Indices of values [n] by descending value, and a number for each rank that it shares with those it ties with."""
    order = values.argsort(descending=True, stable=True)
    return order, torch.cat([torch.zeros(1, dtype=int), (-values[order].diff() >= TIE).cumsum(0)])


def alone(ties):
    """[n]: whether nothing ties with what has this rank."""
    return ties.bincount()[ties] == 1


def median_if_sure(values, ties):
    """Medians [n] over the tokens of values [tokens, n], by rank; NaN where ties could make it another."""
    bounds = []
    for kind in ("amin", "amax"):
        extremes = torch.zeros_like(values).scatter_reduce(-1, ties, values, kind, include_self=False)
        bounds.append(extremes.gather(-1, ties).quantile(0.5, dim=0))
    return torch.where(bounds[1] - bounds[0] < TIE, values.quantile(0.5, dim=0), torch.nan)


class Tables:
    """Collects rows, and writes one file a table."""

    def __init__(self):
        self.parts, self.left_out = defaultdict(list), defaultdict(int)

    def add(self, table, part):
        self.parts[table].append(part)

    def row(self, table, **values):
        self.add(table, {k: [v] for k, v in values.items()})

    def write(self, out: Path):
        out.mkdir(parents=True, exist_ok=True)
        for table, parts in self.parts.items():
            write_table(out / f"{table}.parquet", parts)
            rows = sum(len(next(iter(part.values()))) for part in parts)
            left_out = f", {self.left_out[table]} left out for ties" if self.left_out[table] else ""
            print(f"{table}: {rows} rows{left_out}")


def of_first_prompts(part):
    kept = [i for i, p in enumerate(part["prompt"]) if p < WRITTEN_PROMPTS]
    return {name: [values[i] for i in kept] for name, values in part.items()}


def top_tokens(tables, e: Extended, c):
    effect, tokens = e.de(e.output(c)).flatten(), e.top(c)
    next_best = effect[[i for i in range(len(effect)) if i not in tokens]].max()
    gap = -torch.cat([effect[tokens], next_best[None]]).diff().max()
    if gap < TIE:
        print(f"warning: top tokens of {c} differ by {gap:.1e} only")
    for rank, token in enumerate(tokens, 1):
        tables.row(
            "top_tokens", **c.key(), rank=rank, prompt=e.targets.prompt[token], position=e.targets.position[token],
            direct_effect=effect[token].item())


def component_repairs(tables, e: Extended, key, c, outcome):
    repairers = e.repairers(c)
    if not repairers:
        return
    clean = e.gathered(repairers, e.heads, e.mlps)
    change = e.gathered(repairers, outcome["heads"], outcome["mlps"])
    for token in e.top(c):
        order, ties = ranked(change[token].abs())
        for rank, i in enumerate(order[:TOP_REPAIRS].tolist()):
            if not alone(ties)[rank]:
                tables.left_out["component_repairs"] += 1
                continue
            kind, layer, head = repairers[i]
            tables.row(
                "component_repairs", **key, prompt=e.targets.prompt[token], position=e.targets.position[token],
                rank=rank + 1, repairer=kind, repairer_layer=layer, repairer_head=head,
                direct_effect=clean[token, i].item(), change=change[token, i].item())


def clustered_error(x, prompt):
    """The standard error of the mean of x [n, …], a prompt's tokens taken as one observation; NaN for one prompt."""
    names = sorted(set(prompt))
    sums = torch.stack([(x - x.mean(0))[[p == name for p in prompt]].sum(0) for name in names])
    groups = torch.tensor(float(len(names)), dtype=torch.float64)
    return (groups / (groups - 1) * sums.pow(2).sum(0)).sqrt() / len(x)


def repair_graph(tables, e: Extended, kind, hold, c, outcome):
    repairers = e.repairers(c)
    if not repairers:
        return
    change = e.gathered(repairers, outcome["heads"], outcome["mlps"])
    for subset, tokens in [("top", e.top(c)), ("all", list(range(len(change))))]:
        x, prompt = change[tokens], [e.targets.prompt[t] for t in tokens]
        error = clustered_error(x, prompt)
        for i, (repairer, layer, head) in enumerate(repairers):
            tables.row(
                "repair_graph", ablation=kind, hold=hold, **c.key(), subset=subset,
                repairer=repairer, repairer_layer=layer, repairer_head=head, tokens=len(tokens),
                mean_change=x[:, i].mean().item(), standard_error=error[i].item())


def neuron_tables(tables, e: Extended, key, c, outcome, neuron_layer):
    tokens = e.top(c)
    clean = e.neurons(neuron_layer).flatten(0, 1)[tokens]
    biases = outcome["expert_biases", neuron_layer].flatten()
    change = outcome["neurons", neuron_layer].flatten(0, 1)[tokens]
    order, ties = (torch.stack(x) for x in zip(*(ranked(x) for x in change)))
    change, clean = change.gather(-1, order), clean.gather(-1, order)
    for token, x, effect, neurons, tied in zip(tokens, change, clean, order.tolist(), ties):
        place = key | {
            "prompt": e.targets.prompt[token], "position": e.targets.position[token], "neuron_layer": neuron_layer}
        tables.row(
            "neuron_totals", **place, total_change=(x.sum() + biases[token]).item(), positive_change=x.clamp(min=0).sum().item(),
            absolute_change=x.abs().sum().item(), top_percent_change=x[:max(1, len(x) // 100)].sum().item())
        for rank in range(TOP_REPAIRS):
            if alone(tied)[rank]:
                tables.row(
                    "neuron_repairs", **place, rank=rank + 1, **e.m.neuron(neuron_layer, neurons[rank]),
                    direct_effect=effect[rank].item(), change=x[rank].item())
            else:
                tables.left_out["neuron_repairs"] += 1
    neuron_curve(tables, {"ablation": key["ablation"], "layer": c.layer, "head": c.head, "neuron_layer": neuron_layer},
                 change, clean, ties, e.de(e.output(c)).flatten()[tokens])


def neuron_curve(tables, key, change, clean, ties, own):
    """change and clean effects [tokens, M] in the order of each token's ranks; own: the head's effect [tokens]."""
    assert (own > 0).all(), "top tokens are those that the head helps"
    total = change.abs().sum(-1, keepdim=True)
    if (total < TIE).any():
        print(f"warning: no share of a change of nothing: no curve for {key}")
        tables.left_out["neuron_curves"] += change.shape[-1]
        return
    cumulative = (change.abs().cumsum(-1) / total).mean(0)
    median = median_if_sure(clean, ties)
    rises = {name: change - share * own[:, None] for name, share in SHARES.items()}
    for rank in range(change.shape[-1]):
        if median[rank].isnan() or any((x[:, rank].abs() < TIE).any() for x in rises.values()):
            tables.left_out["neuron_curves"] += 1
            continue
        tables.row(
            "neuron_curves", **key, rank=rank + 1, tokens=len(change), cumulative_share=cumulative[rank].item(),
            **{name: (x[:, rank] > 0).double().mean().item() for name, x in rises.items()},
            direct_effect=median[rank].item())


def self_additions(tables, e: Extended, c):
    own = e.output(c)
    effect = e.de(own)
    assert (e.self_addition(c.layer, c.head, own, 0) - effect).abs().max() < 1e-12, "nothing added, nothing changed"
    for multiple in MULTIPLES:
        new = e.self_addition(c.layer, c.head, own, multiple)
        key = {"layer": c.layer, "head": c.head, "added": "own", "multiple": float(multiple)}
        values = {"direct_effect": effect, "new_direct_effect": new}
        tables.add("self_additions", of_first_prompts(e.rows(key, values)))


def stream_additions(tables, e: Extended, c):
    tokens = e.top(c)
    for added_at in range(e.m.layers):
        for multiple in MULTIPLES:
            values = {k: x.flatten()[tokens].tolist() for k, x in e.stream_addition(c, added_at, multiple).items()}
            if added_at > c.layer:
                values["own_change"] = [None] * len(tokens)
            key = {"layer": c.layer, "head": c.head, "added_at": added_at, "multiple": float(multiple)}
            place = {"prompt": [e.targets.prompt[t] for t in tokens], "position": [e.targets.position[t] for t in tokens]}
            tables.add("stream_additions", {k: [x] * len(tokens) for k, x in key.items()} | place | values)


def head_similarity(tables, e: Extended):
    names = [(l, h) for l in range(e.m.layers) for h in range(e.m.heads)]
    outputs = [e.targets.at(e.m.norm.centre(e.output(Component("head", *name)))) for name in names]
    without = [x - e.along_token(x) for x in outputs]
    for i, (layer, head) in enumerate(names):
        for j, (other_layer, other_head) in enumerate(names[i + 1:], i + 1):
            cosines = [torch.cosine_similarity(x[i], x[j], dim=-1, eps=0).mean().item() for x in (outputs, without)]
            tables.row(
                "head_similarity", layer=layer, head=head, other_layer=other_layer, other_head=other_head,
                tokens=e.s.numel(), cosine=cosines[0], cosine_without_token=cosines[1])


def warn_of_thresholds(e: Extended):
    for effects in (e.heads, e.mlps):
        for threshold in (0, ERASES_BELOW):
            near = ((effects - threshold).abs() < TIE).sum().item()
            if near:
                print(f"warning: {near} clean direct effects are within {TIE} of {threshold}")


def write_extended(e: Extended, components, neuron_layers, out: Path):
    check(e, components)
    warn_of_thresholds(e)
    tables = Tables()
    for c in components:
        top_tokens(tables, e, c)
        holds = HOLDS if c.kind == "head" and c.layer + 1 < e.m.layers else []
        for kind, hold in [(k, "none") for k in KINDS] + [(k, h) for h in holds for k in HELD_KINDS]:
            key = {"ablation": kind, "hold": hold} | c.key()
            outcome = e.outcome_of(kind, c, hold)
            tables.add("ablations", of_first_prompts(e.rows(key, {name: outcome[name] for name in e.columns})))
            if hold != "none":
                continue
            component_repairs(tables, e, key, c, outcome)
            repair_graph(tables, e, kind, hold, c, outcome)
            if c.kind == "head":
                distribution = {name: outcome[name] for name in DISTRIBUTION}
                tables.add("distributions", of_first_prompts(e.rows(key, distribution)))
                for l in neuron_layers:
                    if e.reacts(c)[1][l]:
                        neuron_tables(tables, e, key, c, outcome, l)
    for c in components:
        if c.kind == "head":
            self_additions(tables, e, c)
            stream_additions(tables, e, c)
    head_similarity(tables, e)
    tables.write(out)
    print(out, *(f"{k} {v:.1e}" for k, v in e.residuals.items()), flush=True)
