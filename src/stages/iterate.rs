//! Iterative inference (on request, for the first prompts of a run): what a head does after something was added to the
//! stream it reads, and how alike heads' outputs are. Tables `self_additions` and `head_similarity`.

use std::sync::Arc;

use anyhow::{Context, Result};
use arrow::array::{ArrayRef, Float32Array, StringArray, UInt16Array, UInt32Array};
use arrow::record_batch::RecordBatch;
use ndarray::{Array2, ArrayView2};
use ort::value::DynValue;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::Run;
use crate::corpus::Prompts;
use crate::engine::runtime::view;
use crate::engine::{CleanBatch, Crew, Directions, Engine, Keep, Needs};
use crate::interrupt;
use crate::model::{Architecture, Norm};
use crate::progress;
use crate::run_folder::Stage;
use crate::tables::{HEAD_SIMILARITY, SELF_ADDITIONS, Table, TableWriter, is_whole};

/// What is added, in the order of the table.
const ADDED: [&str; 3] = ["own", "random_direction", "random_head"];

pub fn iterate(run: &Run, prompts: &Prompts, needs: &Needs) -> Result<()> {
    let count = run.config.iterative.prompts.min(prompts.count());
    let path = |table: &Table| run.folder.table(table.name).join(format!("{}.parquet", table.name));
    let whole = |table: &Table| is_whole(&path(table), &run.meta(Stage::Ablate));
    if count == 0 || (whole(&SELF_ADDITIONS) && whole(&HEAD_SIMILARITY)) {
        return Ok(());
    }
    let a = &run.model.architecture;
    let mut crew = Crew::load(a, &run.folder.model(), &run.config.runtime, needs)?;
    let mut additions = Additions::new(run, a);
    let mut similarity = Similarity::new(a);
    let bar = progress::bar("iterate", (count * a.layers) as u64, "layers");
    let numbers: Vec<usize> = (0..count).collect();
    let work = |engine: &mut Engine, &p: &usize| {
        let prompt = Prompt::new(engine, prompts, p)?;
        let outputs: Vec<Vec<f32>> = (0..a.layers).map(|l| prompt.head_outputs(engine, l)).collect::<Result<_>>()?;
        let mut additions = Additions::new(run, a);
        for layer in 0..a.layers {
            interrupt::check()?;
            additions.measure(engine, &prompt, &outputs, layer)?;
            bar.inc(1);
        }
        let mut similarity = Similarity::new(a);
        similarity.add(a, &prompt, &outputs)?;
        Ok((additions, similarity))
    };
    crew.each(&numbers, work, |(of_prompt, alike)| {
        additions.append(of_prompt);
        similarity.append(&alike);
        Ok(())
    })?;
    bar.finish_and_clear();
    let mut writer = TableWriter::create(&HEAD_SIMILARITY, &path(&HEAD_SIMILARITY), &run.meta(Stage::Ablate))?;
    writer.write(&similarity.rows()?)?;
    writer.finish()?;
    let mut writer = TableWriter::create(&SELF_ADDITIONS, &path(&SELF_ADDITIONS), &run.meta(Stage::Ablate))?;
    additions.write(&mut writer)?;
    writer.finish()
}

/// A prompt and its clean pass.
struct Prompt {
    number: usize,
    measured: std::ops::Range<usize>,
    directions: Directions,
    clean: CleanBatch,
}

impl Prompt {
    fn new(engine: &mut Engine, prompts: &Prompts, number: usize) -> Result<Self> {
        let tokens = prompts.needed(number);
        let target = prompts.target_row(number, tokens.len());
        let measured = target.measured.clone();
        let directions = engine.directions(&[target])?;
        let keep = Keep { residual_pre: true, z: true, ..Default::default() };
        let clean = engine.clean(&[tokens], &directions, &vec![keep; engine.architecture.layers])?;
        Ok(Self { number, measured, directions, clean })
    }

    /// [S · H · D]
    fn head_outputs(&self, engine: &mut Engine, layer: usize) -> Result<Vec<f32>> {
        let z = self.kept(&self.clean.layers[layer].z)?;
        Ok(view(&engine.head_outputs(layer, z, 0)?)?.to_vec())
    }

    fn kept<'a>(&self, value: &'a Option<DynValue>) -> Result<&'a DynValue> {
        value.as_ref().context("the clean pass did not keep what iterating needs")
    }

    /// A head's clean effect at a position, unscaled.
    fn effect(&self, heads: usize, layer: usize, head: usize, s: usize) -> f32 {
        self.clean.effects.heads[layer][s * heads + head]
    }
}

/// Effects after additions.
struct Additions {
    multiples: Vec<f64>,
    seed: u64,
    heads: usize,
    d_model: usize,
    /// By layer, head, what was added and multiple: (prompt, position, direct effect, new direct effect).
    rows: Vec<Vec<(u32, u32, f32, f32)>>,
}

impl Additions {
    fn new(run: &Run, a: &Architecture) -> Self {
        let mut multiples = run.config.iterative.multiples.clone();
        multiples.sort_by(f64::total_cmp);
        multiples.dedup();
        let rows = vec![vec![]; a.layers * a.heads * ADDED.len() * multiples.len()];
        Self { multiples, seed: run.config.ablation.seed, heads: a.heads, d_model: a.d_model, rows }
    }

    /// Adds the rows of a later prompt.
    fn append(&mut self, other: Additions) {
        self.rows.iter_mut().zip(other.rows).for_each(|(rows, more)| rows.extend(more));
    }

    fn measure(&mut self, engine: &mut Engine, prompt: &Prompt, outputs: &[Vec<f32>], layer: usize) -> Result<()> {
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
        let rows = outputs[layer].chunks_exact(self.heads * self.d_model);
        rows.flat_map(|row| row[head * self.d_model..(head + 1) * self.d_model].iter().copied()).collect()
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

    fn write(&self, writer: &mut TableWriter) -> Result<()> {
        let variants = ADDED.len() * self.multiples.len();
        for (i, rows) in self.rows.iter().enumerate() {
            let (number, variant) = (i / variants, i % variants);
            let n = rows.len();
            let small = |v: usize| Arc::new(UInt16Array::from(vec![v as u16; n])) as ArrayRef;
            let added = ADDED[variant / self.multiples.len()];
            let multiple = self.multiples[variant % self.multiples.len()] as f32;
            let columns: Vec<ArrayRef> = vec![
                small(number / self.heads),
                small(number % self.heads),
                Arc::new(StringArray::from_iter_values(std::iter::repeat_n(added, n))),
                Arc::new(Float32Array::from(vec![multiple; n])),
                Arc::new(UInt32Array::from_iter_values(rows.iter().map(|r| r.0))),
                Arc::new(UInt32Array::from_iter_values(rows.iter().map(|r| r.1))),
                Arc::new(Float32Array::from_iter_values(rows.iter().map(|r| r.2))),
                Arc::new(Float32Array::from_iter_values(rows.iter().map(|r| r.3))),
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

/// Sums of cosines over tokens, [heads of all layers, the same].
struct Similarity {
    tokens: usize,
    heads: usize,
    cosine: Array2<f64>,
    without_token: Array2<f64>,
}

impl Similarity {
    fn new(a: &Architecture) -> Self {
        let n = a.layers * a.heads;
        let zeros = Array2::zeros((n, n));
        Self { tokens: 0, heads: a.heads, cosine: zeros.clone(), without_token: zeros }
    }

    fn append(&mut self, other: &Similarity) {
        self.tokens += other.tokens;
        self.cosine += &other.cosine;
        self.without_token += &other.without_token;
    }

    fn add(&mut self, a: &Architecture, prompt: &Prompt, outputs: &[Vec<f32>]) -> Result<()> {
        let (heads, d) = (a.heads, a.d_model);
        let u = view(&prompt.directions.u)?;
        for s in prompt.measured.clone() {
            let mut all: Vec<f32> = Vec::with_capacity(a.layers * heads * d);
            for layer in outputs {
                all.extend_from_slice(&layer[s * heads * d..(s + 1) * heads * d]);
            }
            if a.norm == Norm::Layer {
                // A layer norm takes the mean away: it is no part of what is written.
                for row in all.chunks_exact_mut(d) {
                    let mean = row.iter().sum::<f32>() / d as f32;
                    row.iter_mut().for_each(|v| *v -= mean);
                }
            }
            let all = ArrayView2::from_shape((a.layers * heads, d), &all)?;
            let along: Vec<f64> =
                (0..a.layers * heads).map(|i| f64::from(prompt.effect(heads, i / heads, i % heads, s))).collect();
            let squared: f64 = u[s * d..(s + 1) * d].iter().map(|&v| f64::from(v) * f64::from(v)).sum();
            self.add_token(&all.dot(&all.t()), &along, squared);
        }
        Ok(())
    }

    /// Products of all outputs, their products with u, and ‖u‖².
    fn add_token(&mut self, products: &Array2<f32>, along: &[f64], squared: f64) {
        self.tokens += 1;
        let n = along.len();
        let product = |i: usize, j: usize| f64::from(products[[i, j]]);
        let rest = |i: usize, j: usize| product(i, j) - along[i] * along[j] / squared;
        let cosine = |c: f64, a: f64, b: f64| if a > 0.0 && b > 0.0 { c / (a * b).sqrt() } else { 0.0 };
        for i in 0..n {
            for j in i + 1..n {
                self.cosine[[i, j]] += cosine(product(i, j), product(i, i), product(j, j));
                self.without_token[[i, j]] += cosine(rest(i, j), rest(i, i), rest(j, j));
            }
        }
    }

    fn rows(&self) -> Result<RecordBatch> {
        let n = self.cosine.nrows();
        let pairs: Vec<(usize, usize)> = (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j))).collect();
        let small = |f: &dyn Fn(&(usize, usize)) -> usize| -> ArrayRef {
            Arc::new(UInt16Array::from_iter_values(pairs.iter().map(|p| f(p) as u16)))
        };
        let mean = |sums: &Array2<f64>| -> ArrayRef {
            let values = pairs.iter().map(|&(i, j)| (sums[[i, j]] / self.tokens as f64) as f32);
            Arc::new(Float32Array::from_iter_values(values))
        };
        let columns = vec![
            small(&|p| p.0 / self.heads),
            small(&|p| p.0 % self.heads),
            small(&|p| p.1 / self.heads),
            small(&|p| p.1 % self.heads),
            Arc::new(UInt32Array::from(vec![self.tokens as u32; pairs.len()])),
            mean(&self.cosine),
            mean(&self.without_token),
        ];
        RecordBatch::try_new(HEAD_SIMILARITY.schema(), columns).context("building the head_similarity table")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines_with_and_without_the_token() {
        // Outputs (1, 1) and (1, −1) with u = (2, 0): at a right angle, and opposite once u's part is gone.
        let mut similarity =
            Similarity { tokens: 0, heads: 1, cosine: Array2::zeros((2, 2)), without_token: Array2::zeros((2, 2)) };
        let products = ndarray::array![[2.0, 0.0], [0.0, 2.0]];
        similarity.add_token(&products, &[2.0, 2.0], 4.0);
        assert_eq!((similarity.cosine[[0, 1]], similarity.without_token[[0, 1]]), (0.0, -1.0));
    }

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
