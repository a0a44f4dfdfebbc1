//! Iterative inference: a head's effect after an addition to its input, the response of all later components, and the
//! outputs of heads.

use anyhow::Result;
use ort::value::DynValue;

use super::Engine;
use super::clean::{Directions, WriteScales};
use super::hooks::{HookPoint, Outputs};
use super::runtime::{Input, int_tensor, tensor, view};

/// A position of a prompt with something added to its stream.
pub struct Addition {
    pub position: usize,
    /// \[D\]
    pub added: Vec<f32>,
}

/// The responses at N positions to additions before a block, each read at its own position. Effects are unscaled.
pub struct Response {
    /// Of every block from there on, [N, H].
    pub head_effects: Vec<Vec<f32>>,
    /// Of every block from there on, \[N\].
    pub mlp_effects: Vec<Vec<f32>>,
    /// Scales of the norms on what these blocks' parts write; empty in a model without such norms. Effects of heads are by
    /// the clean scales, those of MLPs by these.
    pub write_scales: WriteScales,
    /// Final stream · u, \[N\].
    pub dot: Vec<f32>,
    /// Scale of the final norm, \[N\].
    pub norm_scale: Vec<f32>,
}

impl Engine {
    /// Runs the blocks from `layer` on after each addition to the stream that `layer` reads, one position at a time: the
    /// other positions stay those of the clean streams `residuals` (of every layer, [1, S, D]) of a prompt, which is alone
    /// in `directions`.
    ///
    /// A call reads S clean rows, for their keys and values, and N changed ones; only these go on to the MLP. At most
    /// prompt_len + 1 additions fit into a call.
    pub fn respond(
        &mut self,
        layer: usize,
        residuals: &[&[f32]],
        additions: &[Addition],
        directions: &Directions,
    ) -> Result<Response> {
        let (d, heads) = (self.architecture.d_model, self.architecture.heads);
        let (positions, n) = (residuals[layer].len() / d, additions.len());
        let rows = positions + n;
        let of_changed = |values: &[f32], width: usize| -> Vec<f32> {
            additions.iter().flat_map(|a| values[a.position * width..(a.position + 1) * width].to_vec()).collect()
        };
        let place: Vec<usize> = (0..positions).chain(additions.iter().map(|a| a.position)).collect();
        let u = tensor(&[1, n, d], of_changed(view(&directions.u)?, d))?;
        let mut changed = of_changed(residuals[layer], d);
        changed.iter_mut().zip(additions.iter().flat_map(|a| &a.added)).for_each(|(r, c)| *r += c);
        let mut changed = tensor(&[1, n, d], changed)?;
        let place_tensor = int_tensor(&[1, rows], place.iter().map(|&s| s as i64).collect())?;
        let (mut head_effects, mut mlp_effects, mut write_scales) = (vec![], vec![], WriteScales::default());
        let is_normed = self.architecture.write_norms;
        for (l, residual) in residuals.iter().enumerate().skip(layer) {
            let width = heads * self.architecture.d_head;
            // The clean rows' effects are not looked at.
            let v = [vec![0.0; positions * width], of_changed(view(directions.v(l)?)?, width)].concat();
            let streams = tensor(&[1, rows, d], [*residual, view(&changed)?].concat())?;
            let mask = mask(positions, &place[positions..], self.architecture.attention[l].window);
            let mut outputs = self.attention_masked(l, &streams, &place_tensor, v, mask)?;
            head_effects.push(view(&outputs.take(HookPoint::HeadEffects)?)?[positions * heads..].to_vec());
            let mid = tensor(&[1, n, d], view(&outputs.take(HookPoint::ResidMid)?)?[positions * d..].to_vec())?;
            if is_normed {
                let scale = outputs.take(HookPoint::AttnWriteScale)?;
                write_scales.attention.push(view(&scale)?[positions..].to_vec());
            }
            let mut wanted = vec![HookPoint::ResidPost, HookPoint::MlpEffect];
            wanted.extend(is_normed.then_some(HookPoint::MlpWriteScale));
            let mut outputs = self.mlp(l, &changed, &mid, Input::from(&u), &wanted)?;
            mlp_effects.push(view(&outputs.take(HookPoint::MlpEffect)?)?.to_vec());
            if is_normed {
                write_scales.mlp.push(view(&outputs.take(HookPoint::MlpWriteScale)?)?.to_vec());
            }
            changed = outputs.take(HookPoint::ResidPost)?;
        }
        let (dot, norm_scale) = self.read_out(Input::from(&changed), Input::from(&u))?;
        Ok(Response { head_effects, mlp_effects, write_scales, dot, norm_scale })
    }

    /// The stream after attention [B, R, D], every head's effect [B, R, H], and the scale of the norm on what attention
    /// writes [B, R] if there is one, where `mask` [R, R] says who sees whom.
    fn attention_masked(
        &mut self,
        layer: usize,
        streams: &DynValue,
        place: &DynValue,
        v: Vec<f32>,
        mask: Vec<f32>,
    ) -> Result<Outputs> {
        let rows = streams.shape()[1] as usize;
        let v = tensor(&[1, rows, v.len() / rows], v)?;
        let mask = tensor(&[rows, rows], mask)?;
        let inputs = vec![
            (HookPoint::ResidPre, Input::from(streams)),
            (HookPoint::Positions, Input::from(place)),
            (HookPoint::V, Input::from(&v)),
            (HookPoint::Mask, Input::from(&mask)),
        ];
        let mut wanted = vec![HookPoint::ResidMid, HookPoint::HeadEffects];
        wanted.extend(self.architecture.write_norms.then_some(HookPoint::AttnWriteScale));
        self.blocks.get(layer)?.attention_masked()?.run(inputs, &wanted)
    }

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
        let v = view(directions.v(layer)?)?;
        let v = &v[p * positions * width..(p + 1) * positions * width];
        let streams = tensor(&[batch, 2 * positions, d], streams)?;
        let place = int_tensor(&[batch, 2 * positions], place)?;
        let changed: Vec<usize> = (0..positions).collect();
        let mask = mask(positions, &changed, window);
        let mut outputs = self.attention_masked(layer, &streams, &place, [v, v].concat(), mask)?;
        let effects = outputs.take(HookPoint::HeadEffects)?;
        let rows = view(&effects)?.chunks_exact(positions * heads);
        Ok(rows.skip(1).step_by(2).flatten().copied().collect())
    }

    /// What every head of a layer writes to the stream, [1, S, H, D], of a clean pass over one prompt, which gave z and the
    /// directions' scales.
    pub fn head_outputs(&mut self, layer: usize, z: &DynValue, directions: &Directions) -> Result<DynValue> {
        let scale = directions.write_scales.attention.get(layer);
        let scale = scale.map(|scale| tensor(&[1, scale.len()], scale.clone())).transpose()?;
        let mut inputs = vec![(HookPoint::HookZ, Input::from(z))];
        inputs.extend(scale.as_ref().map(|scale| (HookPoint::AttnWriteScale, Input::from(scale))));
        let mut block = self.blocks.get(layer)?;
        block.head_outputs()?.run(inputs, &[HookPoint::HeadOutputs])?.take(HookPoint::HeadOutputs)
    }
}

/// [S + N, S + N] to add to the scores: clean rows look back on clean rows; changed rows, at the positions `changed`, on
/// the clean rows before them and on themselves.
fn mask(positions: usize, changed: &[usize], window: Option<usize>) -> Vec<f32> {
    let near = |i: usize, j: usize| window.is_none_or(|w| j + w > i);
    let rows = positions + changed.len();
    let mut cells = vec![f32::NEG_INFINITY; rows * rows];
    for (row, cells) in cells.chunks_exact_mut(rows).enumerate() {
        let (place, seen) = match row.checked_sub(positions) {
            None => (row, row + 1),
            Some(i) => (changed[i], changed[i]),
        };
        (0..seen).filter(|&column| near(place, column)).for_each(|column| cells[column] = 0.0);
        cells[row] = 0.0;
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::mask;

    #[test]
    fn a_changed_row_sees_the_clean_past_and_itself() {
        let seen = |changed: &[usize], window| -> Vec<String> {
            let rows = mask(3, changed, window);
            let mark = |&v: &f32| if v == 0.0 { 'x' } else { '.' };
            rows.chunks(3 + changed.len()).map(|r| r.iter().map(mark).collect()).collect()
        };
        assert_eq!(seen(&[0, 1, 2], None), ["x.....", "xx....", "xxx...", "...x..", "x...x.", "xx...x"]);
        assert_eq!(seen(&[0, 1, 2], Some(2)), ["x.....", "xx....", ".xx...", "...x..", "x...x.", ".x...x"]);
        // The same position twice: neither sees the other.
        assert_eq!(seen(&[2, 2], None), ["x....", "xx...", "xxx..", "xx.x.", "xx..x"]);
    }
}
