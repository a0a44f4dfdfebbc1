//! Self-repair of one token and its causes, from clean and ablated effects (docs/definitions.md, "Self-repair" and
//! "Causes of self-repair").

use anyhow::Result;
use selfrepair_core::ensure_check;

use selfrepair_engine::{Ablated, CleanEffects};

/// The measured columns of `ablations` for one token, in float64 until they are written.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Repair {
    pub logit_change: f64,
    pub direct_effect: f64,
    pub ablated_direct_effect: f64,
    pub self_repair: f64,
    pub repair_attention: f64,
    pub repair_mlp: f64,
    pub repair_norm: f64,
    /// From norms on what parts write, and the ablated component's own part of it: 0 in models without such norms.
    pub repair_write_norm: f64,
    pub repair_write_norm_own: f64,
    pub repair_by_erasers: f64,
    pub norm_scale: f64,
    pub ablated_norm_scale: f64,
    /// Set by the caller, who knows the architecture.
    pub ablated_residual_norm: f64,
}

impl Repair {
    /// Adds `weight` times another measurement: resample samples are averaged as effects, not as activations.
    pub fn add(&mut self, other: &Repair, weight: f64) {
        let Repair {
            logit_change,
            direct_effect,
            ablated_direct_effect,
            self_repair,
            repair_attention,
            repair_mlp,
            repair_norm,
            repair_write_norm,
            repair_write_norm_own,
            repair_by_erasers,
            norm_scale,
            ablated_norm_scale,
            ablated_residual_norm,
        } = other;
        self.logit_change += weight * logit_change;
        self.direct_effect += weight * direct_effect;
        self.ablated_direct_effect += weight * ablated_direct_effect;
        self.self_repair += weight * self_repair;
        self.repair_attention += weight * repair_attention;
        self.repair_mlp += weight * repair_mlp;
        self.repair_norm += weight * repair_norm;
        self.repair_write_norm += weight * repair_write_norm;
        self.repair_write_norm_own += weight * repair_write_norm_own;
        self.repair_by_erasers += weight * repair_by_erasers;
        self.norm_scale += weight * norm_scale;
        self.ablated_norm_scale += weight * ablated_norm_scale;
        self.ablated_residual_norm += weight * ablated_residual_norm;
    }
}

/// The ablated component of a run at one token, unscaled.
pub struct AblatedComponent {
    pub layer: usize,
    /// Its effect in the clean run.
    pub own: f64,
    /// The change of that effect when its output is replaced.
    pub own_change: f64,
    /// Of a head whose attention is normed before it writes: that norm's scale with the head replaced.
    pub write_scale: Option<f64>,
}

/// Heads and MLPs of a model, numbered: layer after layer, the heads first.
#[derive(Debug, Clone, Copy)]
pub struct Slots {
    pub layers: usize,
    pub heads: usize,
}

impl Slots {
    pub fn count(self) -> usize {
        self.layers * (self.heads + 1)
    }

    /// `None` is the MLP.
    pub fn of(self, layer: usize, head: Option<usize>) -> usize {
        layer * (self.heads + 1) + head.unwrap_or(self.heads)
    }

    pub fn layer(self, slot: usize) -> usize {
        slot / (self.heads + 1)
    }

    pub fn head(self, slot: usize) -> Option<usize> {
        Some(slot % (self.heads + 1)).filter(|&h| h < self.heads)
    }
}

/// Sums of unscaled changes over repairing components.
#[derive(Default)]
struct Changes {
    attention: f64,
    mlp: f64,
    by_erasers: f64,
    /// From the scales of norms on what later parts write.
    write_norm: f64,
    /// Σ |change|: the scale of float32 rounding.
    size: f64,
}

/// Decomposes the change at token `i` (row of the clean batch), row `j` of the ablated batch. `changes` receives ΔDE of
/// every component that ran again, by [`Slots`]. The causes must sum to the self-repair up to `tolerance` times float32
/// rounding (see [`Precision::tolerance`](selfrepair_core::precision::Precision)).
///
/// # Errors
/// If a number is not finite, or the causes do not sum to the self-repair within float32 rounding.
pub fn repair(
    clean: &CleanEffects,
    i: usize,
    ablated: &Ablated,
    j: usize,
    what: &AblatedComponent,
    changes: &mut [f64],
    tolerance: f64,
) -> Result<Repair> {
    let (scale, new_scale) = (f64::from(clean.norm_scale[i]), f64::from(ablated.norm_scale[j]));
    let (dot, new_dot) = (f64::from(clean.dot[i]), f64::from(ablated.dot[j]));
    let sums = component_changes(clean, i, ablated, j, what.layer, changes);

    let own_write_norm = own_write_norm(clean, i, what);

    let logit_change = new_dot / new_scale - dot / scale;
    let direct_effect = what.own / scale;
    let ablated_direct_effect = (what.own + what.own_change) / scale;
    let self_repair = logit_change - (ablated_direct_effect - direct_effect);
    let repair = Repair {
        logit_change,
        direct_effect,
        ablated_direct_effect,
        self_repair,
        repair_attention: sums.attention / scale,
        repair_mlp: sums.mlp / scale,
        repair_norm: new_dot * (1.0 / new_scale - 1.0 / scale),
        repair_write_norm: (sums.write_norm + own_write_norm) / scale,
        repair_write_norm_own: own_write_norm / scale,
        repair_by_erasers: sums.by_erasers / scale,
        norm_scale: scale,
        ablated_norm_scale: new_scale,
        ablated_residual_norm: 0.0,
    };
    let causes = repair.repair_attention + repair.repair_mlp + repair.repair_norm + repair.repair_write_norm;
    let gap = self_repair - causes;
    let size = (sums.size + what.own_change.abs() + own_write_norm.abs() + dot.abs() + new_dot.abs()) / scale;
    ensure_check!(
        gap.abs() <= 1e-4 * tolerance * size.max(1.0),
        "self-repair is {self_repair} but its causes sum to {causes} (gap {gap:e}, effects of size {size})"
    );
    Ok(repair)
}

fn component_changes(
    clean: &CleanEffects,
    i: usize,
    ablated: &Ablated,
    j: usize,
    layer: usize,
    changes: &mut [f64],
) -> Changes {
    let heads = clean.heads[layer].len() / (clean.prompts * clean.positions);
    let slots = Slots { layers: clean.heads.len(), heads };
    let scale = f64::from(clean.norm_scale[i]);
    let mut sum = Changes::default();
    let mut count = |slot: usize, before: f32, after: f64| -> f64 {
        let change = after - f64::from(before);
        sum.size += change.abs();
        if before < 0.0 {
            sum.by_erasers += change;
        }
        changes[slot] = change / scale;
        change
    };
    let (mut attention, mut mlp, mut write_norm, mut size) = (0.0, 0.0, 0.0, 0.0);
    let mut count_norm = |by_norm: f64| {
        write_norm += by_norm;
        size += by_norm.abs();
    };
    for (n, after) in ablated.head_effects.iter().enumerate() {
        let l = layer + 1 + n;
        let before = &clean.heads[l][i * heads..(i + 1) * heads];
        let after = &after[j * heads..(j + 1) * heads];
        attention += (0..heads).map(|h| count(slots.of(l, Some(h)), before[h], f64::from(after[h]))).sum::<f64>();
        if let Some(scale) = ablated.write_scales.attention.get(n) {
            count_norm(attention_norm_change(clean, i, l, after, scale[j]));
        }
    }
    for (n, after) in ablated.mlp_effects.iter().enumerate() {
        let l = ablated.first_mlp + n;
        let scale = ablated.write_scales.mlp.get(n).map(|scale| scale[j]);
        let of_mlp = at_clean_scale(clean, i, l, after[j], scale);
        mlp += count(slots.of(l, None), clean.mlps[l][i], of_mlp);
        count_norm(f64::from(after[j]) - of_mlp);
    }
    Changes { attention, mlp, write_norm, size: sum.size + size, ..sum }
}

/// What the scale of the norm on what the ablated head's attention writes adds, unscaled.
fn own_write_norm(clean: &CleanEffects, i: usize, what: &AblatedComponent) -> f64 {
    let Some(scale) = what.write_scale else { return 0.0 };
    let heads = clean.heads[what.layer].len() / (clean.prompts * clean.positions);
    let of_heads = &clean.heads[what.layer][i * heads..(i + 1) * heads];
    norm_change(clean, i, what.layer, sum_of_attention(clean, i, what.layer, of_heads) + what.own_change, scale)
}

/// What the new `scale` of the norm on what a layer's attention writes adds, unscaled, at row `i` of a clean batch. The
/// heads' new effects are by the clean scale.
pub fn attention_norm_change(clean: &CleanEffects, i: usize, layer: usize, heads: &[f32], scale: f32) -> f64 {
    norm_change(clean, i, layer, sum_of_attention(clean, i, layer, heads), f64::from(scale))
}

/// What an attention writes more at `scale` than the `effect` that it has at the clean scale.
fn norm_change(clean: &CleanEffects, i: usize, layer: usize, effect: f64, scale: f64) -> f64 {
    effect * (f64::from(clean.write_scales.attention[layer][i]) / scale - 1.0)
}

/// The effect that what an MLP wrote through a norm of `scale`, if there is one, would have at the norm's clean scale.
pub fn at_clean_scale(clean: &CleanEffects, i: usize, layer: usize, written: f32, scale: Option<f32>) -> f64 {
    let ratio = scale.map_or(1.0, |scale| f64::from(scale) / f64::from(clean.write_scales.mlp[layer][i]));
    f64::from(written) * ratio
}

/// Effects of heads and the clean one of what their attention writes that no head does.
fn sum_of_attention(clean: &CleanEffects, i: usize, layer: usize, heads: &[f32]) -> f64 {
    heads.iter().map(|&v| f64::from(v)).sum::<f64>() + attention_bias(clean, i, layer)
}

/// The clean effect of what a layer's attention writes that no head does, unscaled.
fn attention_bias(clean: &CleanEffects, i: usize, layer: usize) -> f64 {
    clean.attention_bias.get(i * clean.heads.len() + layer).map_or(0.0, |&v| f64::from(v))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use selfrepair_engine::WriteScales;

    /// A model of two layers of two heads, one token. Worked out by hand: the clean stream is
    /// embed 1 + heads (4, −1) + MLP 2 + heads (−2, 3) + MLP −3 = 4 along u, at scale 2.
    pub(crate) fn clean() -> CleanEffects {
        CleanEffects {
            prompts: 1,
            positions: 1,
            embed: vec![1.0],
            heads: vec![vec![4.0, -1.0], vec![-2.0, 3.0]],
            attention_bias: vec![],
            mlps: vec![vec![2.0], vec![-3.0]],
            constant: vec![0.0],
            dot: vec![4.0],
            norm_scale: vec![2.0],
            write_scales: WriteScales::default(),
        }
    }

    /// Head (0, 0) is replaced by 0.
    const WHAT: AblatedComponent = AblatedComponent { layer: 0, own: 4.0, own_change: -4.0, write_scale: None };

    fn ablated(dot: f32) -> Ablated {
        Ablated {
            head_effects: vec![vec![-1.0, 3.0]],
            first_mlp: 0,
            mlp_effects: vec![vec![2.5], vec![-2.5]],
            write_scales: WriteScales::default(),
            posts: vec![],
            dot: vec![dot],
            norm_scale: vec![1.6],
            residual_final: None,
        }
    }

    #[test]
    fn causes_add_up_and_are_told_apart() {
        // The effect of head (0, 0) falls by 4. Then MLP 0 writes 2.5 for 2 (+0.5), the heads of
        // layer 1 write (−1, 3) for (−2, 3) (+1, an eraser), and MLP 1 writes −2.5 for −3 (+0.5, an eraser). So the
        // stream is 4 − 4 + 2 = 2 along u; at scale 1.6 the ablated logit is 1.25 and the change 1.25 − 2 = −0.75.
        let mut changes = [0.0; 6];
        let r = repair(&clean(), 0, &ablated(2.0), 0, &WHAT, &mut changes, 1.0).unwrap();
        // Two heads and an MLP a layer, over the scale 2.
        assert_eq!(changes, [0.0, 0.0, 0.25, 0.5, 0.0, 0.25]);
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} is not {b}: {r:?}");
        close(r.direct_effect, 2.0);
        close(r.ablated_direct_effect, 0.0);
        close(r.logit_change, -0.75);
        close(r.self_repair, 1.25);
        close(r.repair_attention, 0.5);
        close(r.repair_mlp, 0.5);
        close(r.repair_norm, 2.0 * (1.0 / 1.6 - 0.5));
        close(r.repair_by_erasers, 0.75);
    }

    #[test]
    fn norms_on_what_is_written_are_a_cause_of_their_own() {
        // As above, but attention and MLPs write through norms, all of scale 2 in the clean run, and there is a bias of
        // attention, 0.5 and −1 along u. Layer 0's attention then wrote 4 − 1 + 0.5 = 3.5; without the head −0.5 at
        // scale 2, and −1 at its new scale 1. MLP 0 writes 2 at scale 2.5: 2.5 at the clean one. Attention 1 writes
        // −1 + 3 − 1 = 1 at the clean scale, and 0.5 at its new scale 4. MLP 1 writes −2.5 at the clean scale.
        let scales = |attention: [f32; 2], mlp: [f32; 2]| WriteScales {
            attention: attention.map(|s| vec![s]).to_vec(),
            mlp: mlp.map(|s| vec![s]).to_vec(),
        };
        let clean = CleanEffects {
            attention_bias: vec![0.5, -1.0],
            dot: vec![3.5],
            write_scales: scales([2.0, 2.0], [2.0, 2.0]),
            ..clean()
        };
        // 1 − 1 + 2 + 0.5 − 2.5 = 0 along u.
        let ablated = Ablated {
            mlp_effects: vec![vec![2.0], vec![-2.5]],
            write_scales: WriteScales { attention: vec![vec![4.0]], mlp: vec![vec![2.5], vec![2.0]] },
            ..ablated(0.0)
        };
        let what = AblatedComponent { write_scale: Some(1.0), ..WHAT };
        let r = repair(&clean, 0, &ablated, 0, &what, &mut [0.0; 6], 1.0).unwrap();
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} is not {b}: {r:?}");
        close(r.logit_change, -1.75);
        close(r.self_repair, 0.25);
        close(r.repair_attention, 0.5);
        close(r.repair_mlp, 0.5);
        close(r.repair_norm, 0.0);
        // −0.5 of the head's own attention, −0.5 of attention 1, −0.5 of MLP 0; over the scale 2.
        close(r.repair_write_norm, -0.75);
        close(r.repair_write_norm_own, -0.25);
    }

    #[test]
    fn causes_that_do_not_add_up_are_an_error() {
        let error = repair(&clean(), 0, &ablated(3.0), 0, &WHAT, &mut [0.0; 6], 1.0).unwrap_err().to_string();
        assert!(error.contains("causes sum to"), "{error}");
        assert!(repair(&clean(), 0, &ablated(f32::NAN), 0, &WHAT, &mut [0.0; 6], 1.0).is_err());
    }
}
