//! How similar the outputs of two heads are, with and without the part along the correct token. Table
//! `head_similarity`.

use std::iter::repeat_n;

use anyhow::{Context, Result};
use arrow::record_batch::RecordBatch;
use ndarray::{Array2, ArrayView2};

use super::Prompt;
use selfrepair_core::columns;
use selfrepair_core::components::Ablatable;
use selfrepair_core::tables::HEAD_SIMILARITY;
use selfrepair_engine::runtime::view;
use selfrepair_model::{Architecture, Norm};

/// Sums of cosines over tokens, [heads of all layers, the same].
pub struct Similarity {
    tokens: usize,
    heads: usize,
    cosine: Array2<f64>,
    without_token: Array2<f64>,
}

impl Similarity {
    pub fn new(a: &Architecture) -> Self {
        let n = a.layers * a.heads;
        let zeros = Array2::zeros((n, n));
        Self { tokens: 0, heads: a.heads, cosine: zeros.clone(), without_token: zeros }
    }

    pub fn append(&mut self, other: &Similarity) {
        self.tokens += other.tokens;
        self.cosine += &other.cosine;
        self.without_token += &other.without_token;
    }

    pub fn add(&mut self, a: &Architecture, prompt: &Prompt, outputs: &[Vec<f32>]) -> Result<()> {
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

    pub fn rows(&self) -> Result<RecordBatch> {
        let n = self.cosine.nrows();
        let pairs: Vec<(usize, usize)> = (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j))).collect();
        let mean = |sums: &Array2<f64>| {
            columns::floats(pairs.iter().map(|&(i, j)| (sums[[i, j]] / self.tokens as f64) as f32))
        };
        let mut columns = Vec::new();
        for number in [|p: &(usize, usize)| p.0, |p: &(usize, usize)| p.1] {
            let heads = || pairs.iter().map(number).map(|n| (n / self.heads, n % self.heads));
            columns.extend([
                columns::names(heads().map(|(layer, head)| Ablatable::head_or_mlp(layer, Some(head)).name())),
                columns::keys(heads().map(|(layer, _)| layer)),
                columns::keys(heads().map(|(_, head)| head)),
            ]);
        }
        columns.extend([
            columns::counts(repeat_n(self.tokens, pairs.len())),
            mean(&self.cosine),
            mean(&self.without_token),
        ]);
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
}
