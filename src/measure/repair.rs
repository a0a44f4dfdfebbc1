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
        repair_write_norm: 0.0,
        repair_write_norm_own: 0.0,
        repair_by_erasers: sums.by_erasers / scale,
        norm_scale: scale,
        ablated_norm_scale: new_scale,
        ablated_residual_norm: 0.0,
    };
    let causes = repair.repair_attention + repair.repair_mlp + repair.repair_norm + repair.repair_write_norm;
    let gap = self_repair - causes;
    let size = (sums.size + what.own_change.abs() + dot.abs() + new_dot.abs()) / scale;
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
    let mut count = |slot: usize, before: f32, after: f32| -> f64 {
        let change = f64::from(after) - f64::from(before);
        sum.size += change.abs();
        if before < 0.0 {
            sum.by_erasers += change;
        }
        changes[slot] = change / scale;
        change
    };
    let (mut attention, mut mlp) = (0.0, 0.0);
    for (l, after) in (layer + 1..).zip(&ablated.head_effects) {
        let before = &clean.heads[l][i * heads..(i + 1) * heads];
        let after = &after[j * heads..(j + 1) * heads];
        attention += (0..heads).map(|h| count(slots.of(l, Some(h)), before[h], after[h])).sum::<f64>();
    }
    for (l, after) in (ablated.first_mlp..).zip(&ablated.mlp_effects) {
        mlp += count(slots.of(l, None), clean.mlps[l][i], after[j]);
    }
    Changes { attention, mlp, ..sum }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

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
        }
    }

    /// Head (0, 0) is replaced by 0.
    const WHAT: AblatedComponent = AblatedComponent { layer: 0, own: 4.0, own_change: -4.0 };

    fn ablated(dot: f32) -> Ablated {
        Ablated {
            head_effects: vec![vec![-1.0, 3.0]],
            first_mlp: 0,
            mlp_effects: vec![vec![2.5], vec![-2.5]],
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
    fn causes_that_do_not_add_up_are_an_error() {
        let error = repair(&clean(), 0, &ablated(3.0), 0, &WHAT, &mut [0.0; 6], 1.0).unwrap_err().to_string();
        assert!(error.contains("causes sum to"), "{error}");
        assert!(repair(&clean(), 0, &ablated(f32::NAN), 0, &WHAT, &mut [0.0; 6], 1.0).is_err());
    }
}
