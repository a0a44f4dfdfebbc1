"""Ablations of any component, of every kind, with other components held: on top of measurement.py, and as plain. Every
ablation is forward passes of the whole model, in which the component's output is replaced in the residual stream.
"""

from dataclasses import dataclass

import torch

from measurement import Effects, Measurement, average, weight_of

KINDS = ["mean", "project_only", "project_out", "resample", "zero"]
ERASES_BELOW = -0.05
TOP_FRACTION = 0.05
COLUMNS = [
    "logit_change", "direct_effect", "ablated_direct_effect", "self_repair", "repair_attention", "repair_mlp",
    "repair_norm", "repair_by_erasers", "norm_scale", "ablated_norm_scale", "ablated_residual_norm",
]
DISTRIBUTION = ["ablated_log_prob", "kl_divergence"]


@dataclass(frozen=True)
class Component:
    kind: str
    """`head`, `mlp`, `attention` (all heads of a layer and b_O') or `block` (attention and MLP of a layer)."""
    layer: int
    head: int | None = None

    @staticmethod
    def parse(name):
        """`L2H1`, `MLP2`, `ATTENTION2` or `BLOCK2`."""
        if name.startswith("L"):
            return Component("head", *map(int, name[1:].split("H")))
        kind = name.rstrip("0123456789")
        return Component(kind.lower(), int(name[len(kind):]))

    def key(self):
        return {"component": self.kind, "layer": self.layer, "head": self.head}


class Extended(Effects):
    def __init__(self, m: Measurement, tokens, partner, targets=None):
        super().__init__(m, tokens, partner, targets)
        self.siblings = [self]
        """Those whose prompts the means are over: more than this one if prompts differ in length."""
        c = m.model.config
        always = c.model_type in ["codegen", "cohere", "cohere2", "gptj", "phi"]
        parallel = getattr(c, "use_parallel_residual", getattr(c, "parallel_attn", always))
        self.mlp_reads_attention = not parallel
        self.w_out = [m.w_out(l) for l in range(m.layers)]
        normed = m.write_norms[0]
        self.columns = COLUMNS + (["repair_write_norm", "repair_write_norm_own"] if normed else [])
        # transformers computes norms in float32.
        self.rounding = 1e-5 if normed else 1e-9

    # What there is to ablate, and what takes its place.

    def output(self, c: Component):
        """What the component adds to the stream in the clean run, [B, S, D]."""
        if c.kind == "head":
            return self.written(c, self.linear(c))
        linear = self.clean["z"][c.layer] @ self.m.w_o[c.layer] + self.m.attention_bias[c.layer]
        attention, mlp = self.m.written(self.clean, c.layer, linear), self.clean["mlp"][c.layer]
        return {"attention": attention, "mlp": mlp, "block": attention + mlp}[c.kind]

    def linear(self, c: Component):
        """The output that is replaced: of a head, before the norm on what attention writes."""
        if c.kind == "head":
            return self.m.head_outputs(self.clean["z"][c.layer], c.layer)[..., c.head, :]
        return self.output(c)

    def written(self, c: Component, linear):
        """What comes of it in the stream, by clean scales."""
        return self.m.written(self.clean, c.layer, linear) if c.kind == "head" else linear

    def mean(self, c: Component):
        """[D]: over all prompts and positions, of all lengths."""
        outputs = torch.cat([e.linear(c).flatten(0, 1) for e in self.siblings])
        return outputs.mean(0)

    def spread(self, x):
        return self.targets.spread(x, self.tokens.shape[1])

    def along_token(self, x, u=None):
        """The part of x [B, positions, D] along u."""
        u = self.u if u is None else u
        return (x * u).sum(-1, keepdim=True) * u / u.pow(2).sum(-1, keepdim=True)

    def replacements_of(self, kind, c: Component):
        """What takes the place of the output, [B, S, D]; several for several samples."""
        x = self.linear(c)
        if kind == "zero":
            return [torch.zeros_like(x)]
        if kind == "mean":
            return [self.mean(c).expand_as(x)]
        if kind == "resample":
            return [x[partner] for partner in self.partner]
        norms = self.m.write_norms[c.layer] if c.kind == "head" else []
        along = self.along_token(self.targets.at(x), norms[0].gamma * self.u if norms else None)
        part = {"project_out": self.targets.at(x) - along, "project_only": along}[kind]
        measured = self.spread(torch.ones_like(self.s, dtype=bool))
        return [torch.where(measured[..., None], self.spread(part), x)]

    def edits(self, c: Component, new):
        if c.kind == "head":
            return {("linear", c.layer): lambda x: x + (new - self.linear(c))}
        if c.kind == "block":
            return {("attention", c.layer): lambda _: new, ("mlp", c.layer): torch.zeros_like}
        return {(c.kind, c.layer): lambda _: new}

    def reacts(self, c: Component):
        """[layers], [layers]: whether the heads, and whether the MLP, of a layer can react to the ablation."""
        heads = torch.arange(self.m.layers) > c.layer
        mlps = heads.clone()
        mlps[c.layer] = c.kind in ("head", "attention") and self.mlp_reads_attention
        return heads, mlps

    # What is held at its clean value.

    def held(self, hold, c: Component):
        """[layers, B, S, H] and [layers, B, S]: where heads and MLPs are held. `hold` is what the table has, or
        `everything`."""
        heads = torch.zeros(self.m.layers, *self.tokens.shape, self.m.heads, dtype=bool)
        mlps = torch.zeros(self.m.layers, *self.tokens.shape, dtype=bool)
        if hold == "erasers":
            for l in range(self.m.layers):
                heads[l] = self.spread(self.heads[l] < ERASES_BELOW)
                mlps[l] = self.spread(self.mlps[l] < ERASES_BELOW)
        elif hold in ("heads", "mlps", "everything"):
            heads[:], mlps[:] = hold != "mlps", hold != "heads"
        elif hold == "last_mlp":
            mlps[-1] = True
        elif hold != "none":
            one = Component.parse(hold)
            if one.kind == "head":
                heads[one.layer, ..., one.head] = True
            else:
                mlps[one.layer] = True
        heads_react, mlps_react = self.reacts(c)
        return heads & heads_react[:, None, None, None], mlps & mlps_react[:, None, None]

    def holding(self, hold, c: Component):
        heads, mlps = self.held(hold, c)
        edits = {}
        for l in range(self.m.layers):
            if heads[l].any():
                mask = heads[l].repeat_interleave(self.m.d_head, -1)
                edits["z", l] = lambda z, l=l, mask=mask: torch.where(mask, self.clean["z"][l], z)
            if mlps[l].any():
                mask = mlps[l][..., None]
                edits["mlp", l] = lambda x, l=l, mask=mask: torch.where(mask, self.clean["mlp"][l], x)
        return edits

    def hold_scales(self, hold, c: Component, seen):
        """What a held MLP writes was normed in the clean run."""
        if self.m.write_norms[0]:
            scales = seen["write_scales"][1]
            for l, mask in enumerate(self.held(hold, c)[1]):
                scales[l] = torch.where(mask, self.clean["write_scales"][1][l], scales[l])

    # What comes of it.

    def outcome_of(self, kind, c: Component, hold="none"):
        """By name, averaged over samples: COLUMNS and DISTRIBUTION [B, positions], and the changes of direct effects:
        `heads` [layers, B, positions, H], `mlps` [layers, B, positions] and (`neurons`, layer) [B, positions, M]."""
        outcomes = []
        heads_react, mlps_react = self.reacts(c)
        for new in self.replacements_of(kind, c):
            holding = self.holding(hold, c)
            edits = self.edits(c, new)
            assert not holding.keys() & edits.keys(), "what is ablated is not held"
            ablated = self.m.run(self.tokens, edits | holding)
            self.hold_scales(hold, c, ablated)
            heads, mlps = self.parts(ablated)
            d_heads, d_mlps = heads - self.heads, mlps - self.mlps
            # What is ablated itself is seen as it was before it was replaced, or as zero (a block's MLP).
            own_mlp = c.layer if c.kind in ("mlp", "block") else None
            for l in range(self.m.layers):
                # (The layer recomputes its own attention, on the same input.)
                assert heads_react[l] or d_heads[l].abs().max() < 1e-12, "only what comes later can react"
                assert mlps_react[l] or l == own_mlp or d_mlps[l].abs().max() < 1e-12, "only what comes later can react"
            d_heads, d_mlps = d_heads * heads_react[:, None, None, None], d_mlps * mlps_react[:, None, None]
            before, after = self.de(self.output(c)), self.de(self.written(c, new))
            if c.kind == "head":
                # z is as it was: the output was replaced.
                heads[c.layer, ..., c.head] += after - before
            norms = self.write_norm_changes(ablated, heads, mlps)
            v = self.outcome(
                ablated, before, after, d_heads, d_mlps, norms, c.layer if c.kind == "head" else None)
            v |= {"heads": d_heads, "mlps": d_mlps} | self.distribution(ablated)
            for l in range(self.m.layers):
                change = self.targets.at(ablated["post"][l] - self.clean["post"][l])
                v["neurons", l] = change * self.neuron_directions(l)
                v["expert_biases", l] = self.expert_bias_change(ablated, l)
                if hold == "none" and l != own_mlp:
                    gap = (v["neurons", l].sum(-1) + v["expert_biases", l] - d_mlps[l]).abs().max()
                    assert gap < self.rounding, "the neurons' changes must sum to the MLP's"
            if kind == "project_out":
                assert v["ablated_direct_effect"].abs().max() < 1e-9, "what is projected out must have no effect"
            outcomes.append(v)
        return average(outcomes)

    def distribution(self, ablated):
        clean, other = (self.targets.at(seen["logits"]).log_softmax(-1) for seen in (self.clean, ablated))
        return {"ablated_log_prob": self.log_prob(ablated), "kl_divergence": (clean.exp() * (clean - other)).sum(-1)}

    def expert_bias_change(self, ablated, layer):
        """Of a mixture of experts whose outputs have biases: what other weights of the experts make of them."""
        before, after = (seen["expert_biases"][layer] for seen in (self.clean, ablated))
        return torch.zeros_like(self.s) if before is None else self.de(self.m.multiplier * (after - before))

    def neuron_directions(self, layer):
        """[B, positions, M]: what a neuron's activation is multiplied with to give its direct effect."""
        direction = self.direction
        if self.m.write_norms[layer]:
            scale = self.targets.at(self.clean["write_scales"][1][layer])
            direction = direction * self.m.write_norms[layer][1].gamma / scale[..., None]
        return direction @ self.w_out[layer].T

    def neurons(self, layer):
        """[B, positions, M]: clean direct effects."""
        return self.targets.at(self.clean["post"][layer]) * self.neuron_directions(layer)

    def top(self, c: Component, fraction=TOP_FRACTION):
        """The component's strongest tokens, as indices into the flattened [B, positions]."""
        effect = self.de(self.output(c)).flatten()
        count = max(1, int(fraction * len(effect)))
        return effect.argsort(descending=True, stable=True)[:count].tolist()

    def repairers(self, c: Component):
        """(component, layer, head) of all that can react."""
        heads, mlps = self.reacts(c)
        found = [("head", l, h) for l in range(self.m.layers) if heads[l] for h in range(self.m.heads)]
        return found + [("mlp", l, None) for l in range(self.m.layers) if mlps[l]]

    @staticmethod
    def gathered(repairers, heads, mlps):
        """[B · positions, repairers]"""
        values = [heads[l, ..., h] if kind == "head" else mlps[l] for kind, l, h in repairers]
        return torch.stack([v.flatten() for v in values], -1)

    def self_addition(self, layer, head, addition, multiple):
        """The head's direct effect [prompts, positions] after multiple · addition [prompts, S, D] was added to the
        stream that its layer reads, at that position alone. (Of a model whose every position but the last is measured.)
        """
        new = torch.empty_like(self.s)
        for p in range(self.positions):
            def edit(stream, p=p):
                stream = stream.clone()
                stream[:, p] += multiple * addition[:, p]
                return stream
            seen = self.m.run(self.tokens, {("stream", layer): edit})
            linear = self.m.head_outputs(seen["z"][layer], layer)[..., head, :]
            output = self.m.written(self.clean, layer, linear)
            new[:, p] = self.de(output)[:, p]
        return new

    def stream_addition(self, c: Component, added_at, multiple):
        """What becomes of every measured position when multiple · the component's clean output is added to the stream that
        block `added_at` reads, at that position alone: columns of `stream_additions` [prompts, positions], and
        `own_change` as if it were never null. (Of a model whose every position but the last is measured.)"""
        effect = self.de(self.output(c))
        names = ["logit_change", "response_attention", "response_mlp", "response_norm", "own_change"]
        names += ["response_write_norm"] if self.m.write_norms[0] else []
        v = {name: torch.empty_like(self.s) for name in names}
        for p in range(self.positions):
            def edit(stream, p=p):
                stream = stream.clone()
                stream[:, p] += multiple * self.output(c)[:, p]
                return stream
            seen = self.m.run(self.tokens, {("stream", added_at): edit})
            heads, mlps = self.parts(seen)
            d_heads, d_mlps = (heads - self.heads)[..., p, :], (mlps - self.mlps)[..., p]
            before = torch.cat([d_heads[:added_at].flatten(), d_mlps[:added_at].flatten(), torch.zeros(1)])
            assert before.abs().max() < 1e-12, "what comes before cannot respond"
            scale = self.targets.at(seen["scale"])[:, p]
            # r' · u, from the whole model's logits: the constant is no part of the stream.
            dot = (self.centred_logit(seen) - self.constant)[:, p] * scale
            v["logit_change"][:, p] = (self.centred_logit(seen) - self.logit)[:, p]
            v["response_attention"][:, p] = d_heads.sum((0, -1))
            v["response_mlp"][:, p] = d_mlps.sum(0)
            v["response_norm"][:, p] = dot * (1 / scale - 1 / self.s[:, p])
            norms = self.write_norm_changes(seen, heads, mlps)
            if norms is not None:
                v["response_write_norm"][:, p] = norms[..., p].sum((0, 1))
            v["own_change"][:, p] = d_heads[c.layer, ..., c.head]
        response = v["logit_change"] - multiple * effect
        parts = sum(v[name] for name in names if name.startswith("response_"))
        gap = (response - parts).abs().max()
        assert gap < 1e-4, "the parts must sum to the response"
        return {"direct_effect": effect, "response": response} | v


def check(e: Extended, components):
    """The measurement against other ways to the same."""
    for c in components:
        v = e.outcome_of("zero", c, "everything")
        assert v["repair_attention"].abs().max() == 0 and v["repair_mlp"].abs().max() == 0
        norms = v["repair_norm"] + v.get("repair_write_norm", 0)
        assert (v["self_repair"] - norms).abs().max() < 1e-4, "with all held, only the norms repair"
        if c.kind == "head":
            # (That path's mean is over its own prompts.)
            for kind in ("mean", "resample", "zero") if e.siblings == [e] else ("resample", "zero"):
                other, v = e.ablate(kind, c.layer, c.head), e.outcome_of(kind, c)
                gap = max((v[name] - other[name]).abs().max().item() for name in e.columns)
                assert gap < 1e-4, "replacing a head's output must be replacing its z"
        if c.kind == "block":
            edits, last = e.edits(c, torch.zeros_like(e.output(c))), c.layer + 1 == e.m.layers
            ablated, before = e.m.run(e.tokens, edits), e.clean["stream"][c.layer]
            after = ablated["residual"] if last else ablated["stream"][c.layer + 1]
            assert (after - before).abs().max() < 1e-9, "without the block, the next must read what it read"
            if not last:
                copied = e.m.run(e.tokens, {("stream", c.layer + 1): lambda _: before})
                assert (copied["logits"] - ablated["logits"]).abs().max() < 1e-4
