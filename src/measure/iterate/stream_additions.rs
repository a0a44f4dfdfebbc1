//! The response of later components when a multiple of a head's output is added to the stream before a block, for every
//! block in turn, one position at a time. Table `stream_additions`.

use std::iter::repeat_n;
use std::sync::Arc;

use anyhow::{Context, Result};
use arrow::array::Float32Array;
use arrow::record_batch::RecordBatch;
use selfrepair_core::ensure_check;

use super::{Prompt, head_output};
use crate::MeasureContext;
use crate::ablate::TopTokens;
use crate::context::balanced;
use crate::repair::{at_clean_scale, attention_norm_change};
use selfrepair_core::columns;
use selfrepair_core::components::Ablatable;
use selfrepair_core::config::Config;
use selfrepair_core::pieces::Additions;
use selfrepair_core::sink::RowWriter;
use selfrepair_core::tables::STREAM_ADDITIONS;
use selfrepair_engine::runtime::view;
use selfrepair_engine::{Addition, CleanEffects, Engine, Response};
use selfrepair_model::Architecture;

/// A row of the table, but for what its slot says.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Row {
    prompt: u32,
    position: u32,
    direct_effect: f32,
    logit_change: f32,
    response: f32,
    response_attention: f32,
    response_mlp: f32,
    response_norm: f32,
    response_write_norm: f32,
    own_change: Option<f32>,
}

/// An addition to make.
#[derive(Clone, Copy)]
struct Item {
    /// Index in `StreamAdditions::heads`.
    head: usize,
    /// Index in `StreamAdditions::multiples`.
    multiple: usize,
    position: usize,
}

/// A masked graph has twice as many rows as the longest prompt.
fn rows_in_call(config: &Config) -> usize {
    2 * config.corpus.prompt_len
}

/// Operations of matrix products on a prompt: an addition at each of the heads' top tokens goes through all blocks from
/// the one it is made before, and a call's attention reads the clean rows besides.
pub fn flops(config: &Config, a: &Architecture, heads: usize, multiples: usize) -> f64 {
    let positions = config.corpus.prompt_len - 1;
    let top = heads as f64 * positions as f64 * config.analysis.top_fraction;
    let additions = (top * multiples as f64).ceil();
    let calls = (additions / (rows_in_call(config) - positions) as f64).ceil();
    let (attention, mlp) = a.block_weights();
    let block = (additions + calls * positions as f64) * attention as f64 + additions * mlp as f64;
    2.0 * block * (a.layers * (a.layers + 1) / 2) as f64
}

pub struct StreamAdditions {
    multiples: Vec<f64>,
    layers: usize,
    d_model: usize,
    heads_in_layer: usize,
    /// Additions and clean rows that fit into one call.
    rows_in_call: usize,
    /// Of sums, as a multiple of float32's.
    tolerance: f64,
    /// The ablated heads: index among what is ablated, layer, head.
    heads: Vec<(usize, usize, usize)>,
    /// By head, block and multiple.
    rows: Vec<Vec<Row>>,
}

impl StreamAdditions {
    pub fn new(context: &MeasureContext, additions: &Additions) -> Result<Self> {
        let a = context.architecture;
        let of = |name: &String| {
            let head = Ablatable::parse(name)?;
            let number =
                context.piece.components().binary_search(&head).ok().context("a head that is not in its piece")?;
            Ok((number, head.layer, head.head.unwrap_or_default()))
        };
        let heads: Vec<_> = additions.heads.iter().map(of).collect::<Result<_>>()?;
        let multiples = additions.multiples.clone();
        let rows = vec![vec![]; heads.len() * a.layers * multiples.len()];
        let (layers, d_model, heads_in_layer) = (a.layers, a.d_model, a.heads);
        let (rows_in_call, tolerance) = (rows_in_call(context.config), context.config.runtime.precision.tolerance());
        Ok(Self { multiples, layers, d_model, heads_in_layer, rows_in_call, tolerance, heads, rows })
    }

    /// Adds the rows of a later prompt.
    pub fn append(&mut self, other: StreamAdditions) {
        self.rows.iter_mut().zip(other.rows).for_each(|(rows, more)| rows.extend(more));
    }

    /// Adds the output of every ablated head before block `layer`, at each of the head's top tokens in the prompt.
    pub fn measure(
        &mut self,
        engine: &mut Engine,
        prompt: &Prompt,
        outputs: &[Vec<f32>],
        top: &TopTokens,
        layer: usize,
    ) -> Result<()> {
        let kept = prompt.clean.layers.iter().map(|l| view(prompt.kept(&l.residual_pre)?));
        let residuals: Vec<&[f32]> = kept.collect::<Result<_>>()?;
        let mut items = Vec::new();
        for (head, &(component, _, _)) in self.heads.iter().enumerate() {
            for (position, _) in top.in_prompt(component, prompt.number) {
                items.extend((0..self.multiples.len()).map(|multiple| Item { head, multiple, position }));
            }
        }
        if items.is_empty() {
            return Ok(());
        }
        let most = self.rows_in_call - prompt.clean.effects.positions;
        for items in balanced(&items, most) {
            let additions: Vec<Addition> = items.iter().map(|item| self.addition(outputs, item)).collect();
            let response = engine.respond(layer, &residuals, &additions, &prompt.directions)?;
            for (j, item) in items.iter().enumerate() {
                let (_, of_layer, head) = self.heads[item.head];
                let own = (of_layer, head, self.multiples[item.multiple]);
                let row = row(&prompt.clean.effects, item.position, &response, j, layer, own, self.tolerance);
                let place = || format!("prompt {}, L{of_layer}H{head} added before block {layer}", prompt.number);
                let row = Row { prompt: prompt.number as u32, ..row.with_context(place)? };
                self.rows[(item.head * self.layers + layer) * self.multiples.len() + item.multiple].push(row);
            }
        }
        Ok(())
    }

    fn addition(&self, outputs: &[Vec<f32>], item: &Item) -> Addition {
        let (_, layer, head) = self.heads[item.head];
        let output = head_output(&outputs[layer], self.heads_in_layer, self.d_model, head, item.position);
        let multiple = self.multiples[item.multiple];
        let added = output.iter().map(|&c| (multiple * f64::from(c)) as f32).collect();
        Addition { position: item.position, added }
    }

    pub fn write(&self, writer: &mut dyn RowWriter) -> Result<()> {
        let multiples = self.multiples.len();
        for (slot, rows) in self.rows.iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
            let (_, layer, head) = self.heads[slot / multiples / self.layers];
            let n = rows.len();
            let keys = |f: fn(&Row) -> u32| columns::keys(rows.iter().map(|r| f(r) as usize));
            let floats = |f: fn(&Row) -> f32| columns::floats(rows.iter().map(f));
            let columns = vec![
                columns::names(repeat_n(Ablatable::head_or_mlp(layer, Some(head)).name(), n)),
                columns::keys(repeat_n(layer, n)),
                columns::keys(repeat_n(head, n)),
                columns::keys(repeat_n(slot / multiples % self.layers, n)),
                columns::settings(repeat_n(self.multiples[slot % multiples], n)),
                keys(|r| r.prompt),
                keys(|r| r.position),
                floats(|r| r.direct_effect),
                floats(|r| r.logit_change),
                floats(|r| r.response),
                floats(|r| r.response_attention),
                floats(|r| r.response_mlp),
                floats(|r| r.response_norm),
                floats(|r| r.response_write_norm),
                Arc::new(rows.iter().map(|r| r.own_change).collect::<Float32Array>()),
            ];
            let batch = RecordBatch::try_new(STREAM_ADDITIONS.schema(), columns);
            writer.write(&batch.context("building the stream_additions table")?)?;
        }
        Ok(())
    }
}

/// Decomposes the change at position `s` of the clean pass in row `j` of a response, after `multiple` times the output of a head
/// (its layer, its number) was added before block `layer`.
///
/// # Errors
/// If a number is not finite, or the parts do not add up to the change of the logit to float32 rounding.
fn row(
    clean: &CleanEffects,
    s: usize,
    response: &Response,
    j: usize,
    layer: usize,
    (of_layer, head, multiple): (usize, usize, f64),
    tolerance: f64,
) -> Result<Row> {
    let heads = clean.heads[0].len() / clean.positions;
    let (final_scale, new_scale) = (f64::from(clean.norm_scale[s]), f64::from(response.norm_scale[j]));
    let (dot, new_dot) = (f64::from(clean.dot[s]), f64::from(response.dot[j]));
    let change = |before: f32, after: f32| (f64::from(after) - f64::from(before)) / final_scale;
    let head_change =
        |l: usize, h: usize| change(clean.heads[l][s * heads + h], response.head_effects[l - layer][j * heads + h]);
    let later = layer..clean.heads.len();
    let of_heads: Vec<f64> = later.clone().flat_map(|l| (0..heads).map(move |h| head_change(l, h))).collect();
    let (mut of_mlps, mut by_write_norms) = (vec![], vec![]);
    for l in later {
        let n = l - layer;
        let of_layer = &response.head_effects[n][j * heads..(j + 1) * heads];
        let scales = &response.write_scales;
        let attention = scales.attention.get(n).map(|of| attention_norm_change(clean, s, l, of_layer, of[j]));
        let scale = scales.mlp.get(n).map(|of| of[j]);
        let mlp = at_clean_scale(clean, s, l, response.mlp_effects[n][j], scale);
        of_mlps.push((mlp - f64::from(clean.mlps[l][s])) / final_scale);
        by_write_norms.push((attention.unwrap_or(0.0) + f64::from(response.mlp_effects[n][j]) - mlp) / final_scale);
    }

    let direct_effect = f64::from(clean.heads[of_layer][s * heads + head]) / final_scale;
    let logit_change = new_dot / new_scale - dot / final_scale;
    let (attention, mlp) = (of_heads.iter().sum::<f64>(), of_mlps.iter().sum::<f64>());
    let norm = new_dot * (1.0 / new_scale - 1.0 / final_scale);
    let write_norm = by_write_norms.iter().sum::<f64>();
    let total = logit_change - multiple * direct_effect;
    let size = of_heads.iter().chain(&of_mlps).chain(&by_write_norms).map(|c| c.abs()).sum::<f64>()
        + (multiple * direct_effect).abs()
        + (dot.abs() + new_dot.abs()) / final_scale;
    let gap = total - (attention + mlp + norm + write_norm);
    ensure_check!(
        gap.abs() <= 1e-4 * tolerance * size.max(1.0),
        "position {s}: the response is {total} but its parts sum to {} (gap {gap:e}, effects of size {size})",
        total - gap
    );
    Ok(Row {
        prompt: 0,
        position: s as u32,
        direct_effect: direct_effect as f32,
        logit_change: logit_change as f32,
        response: total as f32,
        response_attention: attention as f32,
        response_mlp: mlp as f32,
        response_norm: norm as f32,
        response_write_norm: write_norm as f32,
        own_change: (of_layer >= layer).then(|| head_change(of_layer, head) as f32),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repair::tests::clean;
    use selfrepair_engine::WriteScales;

    #[test]
    fn what_was_added_is_told_from_the_response_to_it() {
        // Three times head (0, 0), 12 along u, comes before block 1. Its heads then write (−3, 3) for (−2, 3) and its MLP
        // −6 for −3: the stream is 4 + 12 − 1 − 3 = 12 along u, at scale 4 a logit of 3 for 2.
        let response = |dot| Response {
            head_effects: vec![vec![-3.0, 3.0]],
            mlp_effects: vec![vec![-6.0]],
            write_scales: WriteScales::default(),
            dot: vec![dot],
            norm_scale: vec![4.0],
        };
        let r = row(&clean(), 0, &response(12.0), 0, 1, (0, 0, 3.0), 1.0).unwrap();
        let expected = Row {
            prompt: 0,
            position: 0,
            direct_effect: 2.0,
            logit_change: 1.0,
            response: -5.0,
            response_attention: -0.5,
            response_mlp: -1.5,
            response_norm: -3.0,
            response_write_norm: 0.0,
            own_change: None,
        };
        assert_eq!(r, expected);
        // Head (1, 0) itself runs again.
        assert!(row(&clean(), 0, &response(-6.0), 0, 1, (1, 0, 3.0), 1.0).unwrap().own_change == Some(-0.5));
        let error = row(&clean(), 0, &response(13.0), 0, 1, (0, 0, 3.0), 1.0).unwrap_err().to_string();
        assert!(error.contains("parts sum to"), "{error}");
    }
}
