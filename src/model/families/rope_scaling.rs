//! Rope scalings: how the frequencies of rotary positions change for a longer context, as transformers 5 computes them.

use std::f64::consts::PI;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::rotary::{OF_A_HEAD, Scaling};
use crate::checkpoint::Checkpoint;

/// Llama 3.1's stretching of slow frequencies (transformers: `_compute_llama3_parameters`).
pub struct Llama3 {
    pub factor: f64,
    pub low: f64,
    pub high: f64,
    pub original_context: f64,
}

impl Llama3 {
    pub fn apply(&self, frequency: f64) -> f64 {
        let turns = self.original_context * frequency / (2.0 * PI);
        if turns < self.low {
            frequency / self.factor
        } else if turns > self.high {
            frequency
        } else {
            let smooth = (turns - self.low) / (self.high - self.low);
            (1.0 - smooth) * frequency / self.factor + smooth * frequency
        }
    }
}

/// YaRN (arXiv 2309.00071): slow frequencies are divided by a factor, fast ones stay, and between there is a ramp over
/// the pairs of dimensions (transformers: `_compute_yarn_parameters`).
pub struct Yarn {
    /// Of the configuration.
    key: &'static str,
    factor: f64,
    original_context: f64,
    /// Turns over the original context at the two ends of the ramp.
    beta_fast: f64,
    beta_slow: f64,
    /// Whether the ramp begins and ends at a whole pair.
    truncate: bool,
    pub attention_factor: f64,
}

impl Yarn {
    pub fn of(c: &Checkpoint, scaling: &Scaling) -> Result<Self> {
        let optional = |key: &str| scaling.positive_or_null(key).map(Option::flatten);
        let original_context = scaling.original_context(c)?;
        let factor = factor(c, scaling, original_context)?
            .with_context(|| format!("`{}` is of type `yarn` and has no `factor`", scaling.key))?;
        let truncate = match scaling.values.get("truncate") {
            None => true,
            // transformers looks for it beside the types of layers.
            Some(_) if scaling.is_by_type => true,
            Some(Value::Bool(truncate)) => *truncate,
            Some(other) => anyhow::bail!("`{}` has `truncate` = {other}; expected true or false", scaling.key),
        };
        let mscale = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
        let by_default = match (optional("mscale")?, optional("mscale_all_dim")?) {
            (Some(one), Some(all)) => mscale(one) / mscale(all),
            _ => mscale(1.0),
        };
        Ok(Self {
            key: scaling.key,
            factor,
            original_context,
            beta_fast: optional("beta_fast")?.unwrap_or(32.0),
            beta_slow: optional("beta_slow")?.unwrap_or(1.0),
            truncate,
            attention_factor: optional("attention_factor")?.unwrap_or(by_default),
        })
    }

    pub fn apply(&self, base: f64, dims: usize) -> Result<Vec<f64>> {
        ensure!(
            dims.is_multiple_of(2),
            "`{}` is of type `yarn`, which cannot turn {dims} dimensions of a head ({OF_A_HEAD}; \
             `partial_rotary_factor`); expected an even number",
            self.key
        );
        // The pair of dimensions that turns so often over the original context.
        let pair = |turns: f64| dims as f64 * (self.original_context / (turns * 2.0 * PI)).ln() / (2.0 * base.ln());
        let (from, to) = match (pair(self.beta_fast), pair(self.beta_slow)) {
            (from, to) if self.truncate => (from.floor(), to.ceil()),
            ends => ends,
        };
        ensure!(
            from.is_finite() && to.is_finite(),
            "`{}` is of type `yarn`, which cannot have a base of {base}",
            self.key
        );
        let (from, to) = (from.max(0.0), to.min(dims as f64 - 1.0));
        let to = if from == to { to + 0.001 } else { to };
        Ok((0..dims / 2)
            .map(|i| {
                let frequency = base.powf(-2.0 * i as f64 / dims as f64);
                let slow = ((i as f64 - from) / (to - from)).clamp(0.0, 1.0);
                frequency / self.factor * slow + frequency * (1.0 - slow)
            })
            .collect())
    }
}

/// LongRoPE (arXiv 2402.13753): a divisor for each frequency (transformers: `_compute_longrope_parameters`).
pub struct LongRope {
    /// Those of prompts within the original context. No longer prompt is run.
    pub short_factors: Vec<f64>,
    pub attention_factor: f64,
}

impl LongRope {
    pub fn of(c: &Checkpoint, scaling: &Scaling, dims: usize) -> Result<Self> {
        let original_context = scaling.original_context(c)?;
        // Checked too: transformers computes with the long factors even where it does not use them.
        factors(scaling, "long_factor", dims)?;
        let short_factors = factors(scaling, "short_factor", dims)?;
        let factor = match factor(c, scaling, original_context)? {
            Some(factor) => factor,
            None => c.size("max_position_embeddings")? as f64 / original_context,
        };
        let by_default = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original_context.ln()).sqrt() };
        let attention_factor = scaling.positive_or_null("attention_factor")?.flatten().unwrap_or(by_default);
        ensure!(
            attention_factor.is_finite(),
            "`{}` of type `longrope` cannot have `original_max_position_embeddings` = {original_context}",
            scaling.key
        );
        Ok(Self { short_factors, attention_factor })
    }
}

/// `factor`. A null stands for the ratio of the contexts; `None` if it is missing.
fn factor(c: &Checkpoint, scaling: &Scaling, original_context: f64) -> Result<Option<f64>> {
    match scaling.positive_or_null("factor")? {
        Some(None) => Ok(Some(c.size("max_position_embeddings")? as f64 / original_context)),
        other => Ok(other.flatten()),
    }
}

/// One positive number for each pair of dimensions.
fn factors(scaling: &Scaling, key: &str, dims: usize) -> Result<Vec<f64>> {
    let value = scaling.values.get(key).unwrap_or(&Value::Null);
    let number = |x: &Value| x.as_f64().filter(|x| *x > 0.0 && x.is_finite());
    let numbers: Option<Vec<f64>> = value.as_array().and_then(|list| list.iter().map(number).collect());
    numbers.filter(|list| 2 * list.len() == dims).with_context(|| {
        format!(
            "`{}` of type `longrope` has `{key}` = {value}; expected half as many positive numbers as the {dims} \
             dimensions that are turned (of a head: {OF_A_HEAD})",
            scaling.key
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yarn_stretches_slow_frequencies_only() {
        let yarn = |truncate| Yarn {
            key: "rope_scaling",
            factor: 4.0,
            original_context: 16.0,
            beta_fast: 4.0,
            beta_slow: 0.5,
            truncate,
            attention_factor: 1.0,
        };
        // Turns of pair i over 16 positions: 2.5 · 20^(−i / 4). The ramp goes from pair 0 (4 turns would be before it)
        // to pair 3 (0.5 turns are at pair 2.17).
        let plain = |i: i32| 20f64.powf(-f64::from(i) / 4.0);
        let found = yarn(true).apply(20.0, 8).unwrap();
        for (i, found) in (0..).zip(found) {
            let slow = f64::from(i) / 3.0;
            assert!((found - plain(i) * (1.0 - 0.75 * slow)).abs() < 1e-12, "{i}");
        }
        let end = 8.0 * (16.0 / PI).ln() / (2.0 * 20f64.ln());
        let found = yarn(false).apply(20.0, 8).unwrap();
        assert!((found[2] - plain(2) * (1.0 - 0.75 * 2.0 / end)).abs() < 1e-12);
        assert!((found[3] - plain(3) / 4.0).abs() < 1e-12);
        assert!(yarn(true).apply(20.0, 7).is_err());
        assert!(yarn(true).apply(1.0, 8).is_err());
    }
}
