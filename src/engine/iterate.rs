//! Iterative inference: a head's effect after something was added to what it reads, and what heads write.

use anyhow::{Context, Result};
use ort::value::DynValue;

use super::Engine;
use super::clean::Directions;
use super::runtime::{Input, int_tensor, rows, tensor, view};

impl Engine {
    /// Every head's effect at each position, [B, S, H] unscaled, after `added` [B, S, D] was put on the stream that
    /// `layer` reads, at one position at a time: the other positions' keys and values stay those of the clean stream
    /// `residual` [1, S, D] of prompt `p`.
    ///
    /// One run reads 2 S rows: the clean stream and the changed one. A changed row attends to the clean rows before it
    /// and to itself.
    pub fn effects_after_adding(
        &mut self,
        layer: usize,
        residual: &[f32],
        added: &[f32],
        directions: &Directions,
        p: usize,
    ) -> Result<Vec<f32>> {
        let a = &self.architecture;
        let (d, heads) = (a.d_model, a.heads);
        let positions = residual.len() / d;
        let batch = added.len() / residual.len();
        let (window, width) = (a.attention[layer].window, a.heads * a.d_head);
        let mut streams = Vec::with_capacity(2 * added.len());
        for added in added.chunks_exact(residual.len()) {
            streams.extend_from_slice(residual);
            streams.extend(residual.iter().zip(added).map(|(r, c)| r + c));
        }
        let place = (0..batch).flat_map(|_| (0..2 * positions).map(|i| (i % positions) as i64)).collect();
        let v = view(&directions.v[layer])?;
        let v = &v[p * positions * width..(p + 1) * positions * width];
        let streams = tensor(&[batch, 2 * positions, d], streams)?;
        let place = int_tensor(&[batch, 2 * positions], place)?;
        let v = tensor(&[1, 2 * positions, width], [v, v].concat())?;
        let mask = tensor(&[2 * positions, 2 * positions], mask(positions, window))?;
        let graph = self.attention_masked.get_mut(layer).context("this engine was not loaded for iterating")?;
        let inputs = [
            ("residual", Input::from(&streams)),
            ("positions", Input::from(&place)),
            ("v", Input::from(&v)),
            ("mask", Input::from(&mask)),
        ];
        let [effects] = graph.run(inputs, ["head_effects"])?;
        let rows = view(&effects)?.chunks_exact(positions * heads);
        Ok(rows.skip(1).step_by(2).flatten().copied().collect())
    }

    /// What every head of a layer writes to the stream, [1, S, H, D], of prompt `p` of a clean pass.
    pub fn head_outputs(&mut self, layer: usize, z: &DynValue, p: usize) -> Result<DynValue> {
        let graph = self.head_outputs.get_mut(layer).context("this engine was not loaded for iterating")?;
        let [outputs] = graph.run([("z", rows(z, p..p + 1)?)], ["head_outputs"])?;
        Ok(outputs)
    }
}

/// [2 S, 2 S] to add to the scores: clean rows look back on clean rows, changed rows on the clean rows before them and
/// on themselves.
fn mask(positions: usize, window: Option<usize>) -> Vec<f32> {
    let near = |i: usize, j: usize| window.is_none_or(|w| j + w > i);
    let allowed = |row: usize, column: usize| match (row < positions, column < positions) {
        (true, true) => column <= row && near(row, column),
        (false, true) => column < row - positions && near(row - positions, column),
        (true, false) => false,
        (false, false) => row == column,
    };
    let cells = (0..4 * positions * positions).map(|i| allowed(i / (2 * positions), i % (2 * positions)));
    cells.map(|ok| if ok { 0.0 } else { f32::NEG_INFINITY }).collect()
}

#[cfg(test)]
mod tests {
    use super::mask;

    #[test]
    fn a_changed_row_sees_the_clean_past_and_itself() {
        let seen = |window| -> Vec<String> {
            mask(3, window).chunks(6).map(|r| r.iter().map(|&v| if v == 0.0 { 'x' } else { '.' }).collect()).collect()
        };
        assert_eq!(seen(None), ["x.....", "xx....", "xxx...", "...x..", "x...x.", "xx...x"]);
        assert_eq!(seen(Some(2)), ["x.....", "xx....", ".xx...", "...x..", "x...x.", ".x...x"]);
    }
}
