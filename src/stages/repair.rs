//! Self-repair of one token from clean and ablated effects (DESIGN: "Per token and ablated component").

use anyhow::{Result, ensure};

use crate::engine::{Ablated, CleanEffects};

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
        self.repair_by_erasers += weight * repair_by_erasers;
        self.norm_scale += weight * norm_scale;
        self.ablated_norm_scale += weight * ablated_norm_scale;
        self.ablated_residual_norm += weight * ablated_residual_norm;
    }
}

/// The ablated component of a run, and what replacing it did to its own effect.
pub struct AblatedHead {
    pub layer: usize,
    pub head: usize,
    /// (Replacement z − clean z) · v at this token, unscaled.
    pub own_change: f64,
}

/// Sums of unscaled changes over repairing components.
#[derive(Default)]
struct Changes {
    attention: f64,
    mlp: f64,
    by_erasers: f64,
    /// Σ |change|: what float32 rounding is relative to.
    size: f64,
}

/// What became of token `i` (row of the clean batch) in row `j` of the ablated batch.
///
/// # Errors
/// If a number is not finite, or the causes do not add up to the self-repair to float32 rounding.
pub fn repair(clean: &CleanEffects, i: usize, ablated: &Ablated, j: usize, what: &AblatedHead) -> Result<Repair> {
    let (scale, new_scale) = (f64::from(clean.norm_scale[i]), f64::from(ablated.norm_scale[j]));
    let (dot, new_dot) = (f64::from(clean.dot[i]), f64::from(ablated.dot[j]));
    let heads = clean.heads[what.layer].len() / (clean.prompts * clean.positions);
    let own = f64::from(clean.heads[what.layer][i * heads + what.head]);
    let changes = changes(clean, i, ablated, j, what.layer, heads);

    let logit_change = new_dot / new_scale - dot / scale;
    let direct_effect = own / scale;
    let ablated_direct_effect = (own + what.own_change) / scale;
    let self_repair = logit_change - (ablated_direct_effect - direct_effect);
    let repair = Repair {
        logit_change,
        direct_effect,
        ablated_direct_effect,
        self_repair,
        repair_attention: changes.attention / scale,
        repair_mlp: changes.mlp / scale,
        repair_norm: new_dot * (1.0 / new_scale - 1.0 / scale),
        repair_by_erasers: changes.by_erasers / scale,
        norm_scale: scale,
        ablated_norm_scale: new_scale,
        ablated_residual_norm: 0.0,
    };
    let gap = self_repair - (repair.repair_attention + repair.repair_mlp + repair.repair_norm);
    let size = (changes.size + what.own_change.abs() + dot.abs() + new_dot.abs()) / scale;
    ensure!(
        gap.abs() <= 1e-4 * size.max(1.0),
        "self-repair is {self_repair} but its causes sum to {} (gap {gap:e}, effects of size {size})",
        self_repair - gap
    );
    Ok(repair)
}

fn changes(clean: &CleanEffects, i: usize, ablated: &Ablated, j: usize, layer: usize, heads: usize) -> Changes {
    let mut sum = Changes::default();
    let mut count = |before: f32, after: f32| -> f64 {
        let change = f64::from(after) - f64::from(before);
        sum.size += change.abs();
        if before < 0.0 {
            sum.by_erasers += change;
        }
        change
    };
    let mut attention = 0.0;
    for (l, after) in (layer + 1..).zip(&ablated.head_effects) {
        let before = &clean.heads[l][i * heads..(i + 1) * heads];
        let after = &after[j * heads..(j + 1) * heads];
        attention += before.iter().zip(after).map(|(&b, &a)| count(b, a)).sum::<f64>();
    }
    let mlps = (ablated.first_mlp..).zip(&ablated.mlp_effects);
    let mlp = mlps.map(|(l, after)| count(clean.mlps[l][i], after[j])).sum();
    Changes { attention, mlp, ..sum }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model of two layers of two heads, one token. Worked out by hand: the clean stream is
    /// embed 1 + heads (4, −1) + MLP 2 + heads (−2, 3) + MLP −3 = 4 along u, at scale 2.
    fn clean() -> CleanEffects {
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

    #[test]
    fn causes_add_up_and_are_told_apart() {
        // Head (0, 0) is replaced by 0 (its effect falls by 4). Then MLP 0 writes 2.5 for 2 (+0.5), the heads of
        // layer 1 write (−1, 3) for (−2, 3) (+1, an eraser), and MLP 1 writes −2.5 for −3 (+0.5, an eraser). So the
        // stream is 4 − 4 + 2 = 2 along u; at scale 1.6 the ablated logit is 1.25 and the change 1.25 − 2 = −0.75.
        let ablated = Ablated {
            head_effects: vec![vec![-1.0, 3.0]],
            first_mlp: 0,
            mlp_effects: vec![vec![2.5], vec![-2.5]],
            dot: vec![2.0],
            norm_scale: vec![1.6],
        };
        let what = AblatedHead { layer: 0, head: 0, own_change: -4.0 };
        let r = repair(&clean(), 0, &ablated, 0, &what).unwrap();
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
        let ablated = Ablated {
            head_effects: vec![vec![-1.0, 3.0]],
            first_mlp: 0,
            mlp_effects: vec![vec![2.5], vec![-2.5]],
            dot: vec![3.0],
            norm_scale: vec![1.6],
        };
        let what = AblatedHead { layer: 0, head: 0, own_change: -4.0 };
        let error = repair(&clean(), 0, &ablated, 0, &what).unwrap_err().to_string();
        assert!(error.contains("causes sum to"), "{error}");
        let nan = Ablated { dot: vec![f32::NAN], ..ablated };
        assert!(repair(&clean(), 0, &nan, 0, &what).is_err());
    }
}
