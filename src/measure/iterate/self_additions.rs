//! A head's reaction to an addition to its own input, and to two controls. Table `self_additions`.

use std::iter::repeat_n;

use anyhow::Result;
use arrow::array::ArrayRef;
use arrow::record_batch::RecordBatch;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::{Prompt, head_output};
use crate::MeasureContext;
use selfrepair_core::columns;
use selfrepair_core::components::Ablatable;
use selfrepair_core::config::Config;
use selfrepair_core::pieces::Additions;
use selfrepair_core::sink::RowWriter;
use selfrepair_core::tables::SELF_ADDITIONS;
use selfrepair_engine::Engine;
use selfrepair_engine::runtime::view;
use selfrepair_model::Architecture;

/// What is added, in the order of the table.
const ADDED: [&str; 3] = ["own", "random_direction", "random_head"];

/// Operations of matrix products on a prompt: attention of a clean and a changed row for every position, head, thing that
/// is added and multiple.
pub fn flops(config: &Config, a: &Architecture, multiples: usize) -> f64 {
    let rows = 2 * (config.corpus.prompt_len - 1) * ADDED.len() * multiples;
    2.0 * (a.layers * a.heads * rows * a.block_weights().0) as f64
}

/// Effects after additions.
pub struct SelfAdditions {
    multiples: Vec<f64>,
    seed: u64,
    heads: usize,
    d_model: usize,
    /// By layer, head, what was added and multiple: (prompt, position, direct effect, new direct effect).
    rows: Vec<Vec<(u32, u32, f32, f32)>>,
}

impl SelfAdditions {
    pub fn new(context: &MeasureContext, additions: &Additions) -> Self {
        let a = context.architecture;
        let multiples = additions.multiples.clone();
        let rows = vec![vec![]; a.layers * a.heads * ADDED.len() * multiples.len()];
        Self { multiples, seed: context.config.ablation.seed, heads: a.heads, d_model: a.d_model, rows }
    }

    /// Adds the rows of a later prompt.
    pub fn append(&mut self, other: SelfAdditions) {
        self.rows.iter_mut().zip(other.rows).for_each(|(rows, more)| rows.extend(more));
    }

    pub fn measure(&mut self, engine: &mut Engine, prompt: &Prompt, outputs: &[Vec<f32>], layer: usize) -> Result<()> {
        let residual = view(prompt.kept(&prompt.clean.layers[layer].residual_pre)?)?;
        for head in 0..self.heads {
            let number = layer * self.heads + head;
            let own = self.output(outputs, layer, head);
            let seed = self.seed ^ ((number as u64 + 1) << 32) ^ prompt.number as u64;
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let total = outputs.len() * self.heads;
            let other = (number + 1 + (random.next_u64() % (total as u64 - 1).max(1)) as usize) % total;
            let other = self.output(outputs, other / self.heads, other % self.heads);
            let direction = random_directions(&own, self.d_model, &mut random);
            let variants: Vec<(&Vec<f32>, f64)> = [&own, &direction, &other]
                .into_iter()
                .flat_map(|added| self.multiples.iter().map(move |&m| (added, m)))
                .collect();
            let added: Vec<f32> =
                variants.iter().flat_map(|(added, m)| added.iter().map(move |&c| (m * f64::from(c)) as f32)).collect();
            let effects = engine.effects_after_adding(layer, residual, &added, &prompt.directions, 0)?;
            self.keep(prompt, layer, head, &effects);
        }
        Ok(())
    }

    /// A head's output, [S · D].
    fn output(&self, outputs: &[Vec<f32>], layer: usize, head: usize) -> Vec<f32> {
        let positions = outputs[layer].len() / (self.heads * self.d_model);
        let at = |s| head_output(&outputs[layer], self.heads, self.d_model, head, s);
        (0..positions).flat_map(|s| at(s).iter().copied()).collect()
    }

    fn keep(&mut self, prompt: &Prompt, layer: usize, head: usize, effects: &[f32]) {
        let positions = prompt.clean.effects.positions;
        let variants = ADDED.len() * self.multiples.len();
        let first = (layer * self.heads + head) * variants;
        for (rows, effects) in
            self.rows[first..first + variants].iter_mut().zip(effects.chunks_exact(positions * self.heads))
        {
            rows.extend(prompt.measured.clone().map(|s| {
                let scale = prompt.clean.effects.norm_scale[s];
                let before = prompt.effect(self.heads, layer, head, s) / scale;
                (prompt.number as u32, s as u32, before, effects[s * self.heads + head] / scale)
            }));
        }
    }

    pub fn write(&self, writer: &mut dyn RowWriter) -> Result<()> {
        let variants = ADDED.len() * self.multiples.len();
        for (i, rows) in self.rows.iter().enumerate() {
            let (number, variant) = (i / variants, i % variants);
            let n = rows.len();
            let (layer, head) = (number / self.heads, number % self.heads);
            let added = ADDED[variant / self.multiples.len()];
            let columns: Vec<ArrayRef> = vec![
                columns::names(repeat_n(Ablatable::head_or_mlp(layer, Some(head)).name(), n)),
                columns::keys(repeat_n(layer, n)),
                columns::keys(repeat_n(head, n)),
                columns::texts(repeat_n(added, n)),
                columns::settings(repeat_n(self.multiples[variant % self.multiples.len()], n)),
                columns::keys(rows.iter().map(|r| r.0 as usize)),
                columns::keys(rows.iter().map(|r| r.1 as usize)),
                columns::floats(rows.iter().map(|r| r.2)),
                columns::floats(rows.iter().map(|r| r.3)),
            ];
            writer.write(&RecordBatch::try_new(SELF_ADDITIONS.schema(), columns)?)?;
        }
        Ok(())
    }
}

/// At each position a direction drawn evenly, of the length of `own` [S · D] there.
fn random_directions(own: &[f32], d_model: usize, random: &mut ChaCha8Rng) -> Vec<f32> {
    let mut uniform = || (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    // Box and Muller: normal coordinates have no preferred direction.
    let mut normal = || (-2.0 * (1.0 - uniform()).ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
    let norm = |row: &mut dyn Iterator<Item = f64>| row.map(|v| v * v).sum::<f64>().sqrt();
    let mut out = Vec::with_capacity(own.len());
    for row in own.chunks_exact(d_model) {
        let draw: Vec<f64> = (0..d_model).map(|_| normal()).collect();
        let scale = norm(&mut row.iter().map(|&v| f64::from(v))) / norm(&mut draw.iter().copied());
        out.extend(draw.iter().map(|v| (v * scale) as f32));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_directions_have_the_norm_and_no_bias() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let own = [3.0, 4.0, 0.0, 0.0].repeat(2000);
        let drawn = random_directions(&own, 4, &mut random);
        let mut mean = [0.0; 4];
        for row in drawn.chunks_exact(4) {
            assert!((row.iter().map(|v| v * v).sum::<f32>().sqrt() - 5.0).abs() < 1e-4);
            mean.iter_mut().zip(row).for_each(|(m, v)| *m += v / 2000.0);
        }
        assert!(mean.iter().all(|m| m.abs() < 0.25), "{mean:?}");
    }
}
