//! The clean pass over a batch of prompts.

use anyhow::{Context, Result, ensure};
use ort::value::DynValue;

use super::Engine;
use super::hooks::{HookPoint, Outputs};
use super::posts::Posts;
use super::runtime::{self, Input, int_tensor, tensor, view, view_mut};
use selfrepair_core::memory::{copied, try_with_capacity};
use selfrepair_core::prompts::TargetRow;

/// What the stream and every `z` are projected on: a direction a prompt position.
pub struct Directions {
    /// u = γ ⊙ Ŵ\[target\], [P, S, D].
    pub u: DynValue,
    /// W_O u of the layers that a clean pass kept it of, [P, S, H · d_head].
    ///
    /// In a model that norms what attention writes, W_O (γ_post ⊙ u) over that norm's scale.
    v: Vec<Option<DynValue>>,
    /// b_O' · u, [P, S, layers]; empty for a model without such biases. Normed as `v`.
    pub attention_bias: Vec<f32>,
    /// k, the part of the logit that no component writes, [P, S].
    pub constant: Vec<f32>,
    /// The scales that a clean pass gave to the norms on what parts write, which are those of direct effects.
    pub write_scales: WriteScales,
}

/// Scales of the norms on what parts write, by layer, [B, S] each; empty in a model without such norms.
#[derive(Clone, Debug, Default)]
pub struct WriteScales {
    pub attention: Vec<Vec<f32>>,
    pub mlp: Vec<Vec<f32>>,
}

/// The effects of every component in a clean pass over B prompts, unscaled (see the module's head).
pub struct CleanEffects {
    pub prompts: usize,
    pub positions: usize,
    /// The embedding's, positions included, [B, S].
    pub embed: Vec<f32>,
    /// Each layer's heads', [B, S, H].
    pub heads: Vec<Vec<f32>>,
    /// What attention writes that no head does, [B, S, layers]; empty for a model without.
    pub attention_bias: Vec<f32>,
    /// Each layer's MLP's, [B, S].
    pub mlps: Vec<Vec<f32>>,
    /// k, in logits, [B, S].
    pub constant: Vec<f32>,
    /// Final stream · u, [B, S].
    pub dot: Vec<f32>,
    /// Scale of the final norm, [B, S].
    pub norm_scale: Vec<f32>,
    pub write_scales: WriteScales,
}

/// A clean pass over B prompts.
pub struct CleanBatch {
    pub effects: CleanEffects,
    /// What was asked for, a layer each.
    pub layers: Vec<Kept>,
    /// The stream after the last block, [B, S, D].
    pub residual_final: DynValue,
}

/// Which of a layer's tensors a pass keeps.
#[derive(Clone, Copy, Default)]
pub struct Keep {
    /// W_O u of its heads, in the directions.
    pub directions: bool,
    pub mid: bool,
    pub residual_pre: bool,
    pub residual_post: bool,
    pub z: bool,
    pub attention_linear: bool,
    pub attention_out: bool,
    pub mlp_out: bool,
    pub post: bool,
}

/// A layer's tensors that were asked for.
#[derive(Default)]
pub struct Kept {
    /// The stream with attention added, [B, S, D].
    pub mid: Option<DynValue>,
    /// The stream before the block, [B, S, D].
    pub residual_pre: Option<DynValue>,
    /// The stream after the block, [B, S, D].
    pub residual_post: Option<DynValue>,
    /// [B, S, H · d_head]
    pub z: Option<DynValue>,
    /// What attention gives before the norm on what it writes, [B, S, D].
    pub attention_linear: Option<DynValue>,
    /// What attention writes, b_O' included, [B, S, D].
    pub attention_out: Option<DynValue>,
    /// What the MLP writes, its bias included, [B, S, D].
    pub mlp_out: Option<DynValue>,
    /// The neurons.
    pub post: Option<Posts>,
}

impl Engine {
    /// The directions of `targets`, prompts of equal length; zero where nothing is measured.
    pub fn directions(&mut self, targets: &[TargetRow]) -> Result<Directions> {
        let answers: Vec<&[u32]> = targets.iter().map(|t| t.answer.as_slice()).collect();
        let mut directions = self.directions_of(&answers)?;
        if targets.iter().any(|t| t.wrong.is_some()) {
            let wrong: Vec<Vec<u32>> =
                targets.iter().map(|t| vec![t.wrong.unwrap_or_default(); t.answer.len()]).collect();
            let wrong: Vec<&[u32]> = wrong.iter().map(Vec::as_slice).collect();
            let has_wrong = |p: usize, _| targets[p].wrong.is_some();
            directions.change(&self.directions_of(&wrong)?, has_wrong, |x, wrong| *x -= wrong)?;
        }
        if targets.iter().any(|t| t.measured != (0..t.answer.len())) {
            let outside = |p: usize, s: usize| !targets[p].measured.contains(&s);
            directions.clear(targets.len(), outside)?;
        }
        Ok(directions)
    }

    fn directions_of(&mut self, targets: &[&[u32]]) -> Result<Directions> {
        let a = &self.architecture;
        let (has_bias, has_constant) = (a.has_attention_bias(), a.has_constant());
        let mut wanted = vec![HookPoint::U];
        wanted.extend(has_bias.then_some(HookPoint::AttentionBias));
        wanted.extend(has_constant.then_some(HookPoint::Constant));
        let ids = token_tensor(targets)?;
        let mut outputs = self.directions.run(vec![(HookPoint::Targets, Input::from(&ids))], &wanted)?;
        let numbers = |value: Option<DynValue>| -> Result<Option<Vec<f32>>> {
            value.map(|value| Ok(view(&value)?.to_vec())).transpose()
        };
        let constant = numbers(outputs.take_if(has_constant, HookPoint::Constant)?)?;
        Ok(Directions {
            u: outputs.take(HookPoint::U)?,
            v: vec![],
            attention_bias: numbers(outputs.take_if(has_bias, HookPoint::AttentionBias)?)?.unwrap_or_default(),
            constant: constant.unwrap_or_else(|| vec![0.0; targets.len() * targets[0].len()]),
            write_scales: WriteScales::default(),
        })
    }

    /// Runs prompts of equal length; `keep[l]` says what to keep of layer l (nothing beyond the end of `keep`). The
    /// directions, fresh from [`Engine::directions`], get the scales of the norms on what parts write.
    pub fn clean(&mut self, tokens: &[&[u32]], directions: &mut Directions, keep: &[Keep]) -> Result<CleanBatch> {
        ensure!(directions.v.is_empty(), "these directions have the scales of another clean pass");
        let (prompts, positions) = (tokens.len(), tokens[0].len());
        let layers = self.architecture.layers;
        let place = position_tensor(prompts, positions)?;
        let mut residual = self.embed(tokens, &place)?;
        let (embed, _) = self.read_out(Input::from(&residual), Input::from(&directions.u))?;
        let (mut heads, mut mlps, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        for l in 0..layers {
            let keep = keep.get(l).copied().unwrap_or_default();
            let mut v = self.head_directions(l, directions)?;
            let (of_heads, u) = (Input::from(&v), Input::from(&directions.u));
            let block = self.block(l, residual, &place, of_heads, u, keep)?;
            let mut of_heads = copied(view(&block.head_effects)?)?;
            if let Some((of_attention, of_mlp)) = block.write_scales {
                divide_rows(&mut of_heads, &of_attention);
                divide_rows(view_mut(&mut v)?, &of_attention);
                directions.norm_attention(l, layers, of_attention);
                directions.write_scales.mlp.push(of_mlp);
            }
            directions.v.push(keep.directions.then_some(v));
            heads.push(of_heads);
            mlps.push(copied(view(&block.mlp_effect)?)?);
            kept.push(block.kept);
            residual = block.residual;
        }
        let (dot, norm_scale) = self.read_out(Input::from(&residual), Input::from(&directions.u))?;
        let effects = CleanEffects {
            prompts,
            positions,
            embed,
            heads,
            attention_bias: directions.attention_bias.clone(),
            mlps,
            constant: directions.constant.clone(),
            dot,
            norm_scale,
            write_scales: directions.write_scales.clone(),
        };
        Ok(CleanBatch { effects, layers: kept, residual_final: residual })
    }

    /// W_O u of the heads of a layer, [P, S, H · d_head], not divided by the scale of a norm.
    fn head_directions(&mut self, layer: usize, directions: &Directions) -> Result<DynValue> {
        let inputs = vec![(HookPoint::U, Input::from(&directions.u))];
        self.blocks.get(layer)?.head_directions.run(inputs, &[HookPoint::V])?.take(HookPoint::V)
    }

    /// What prompts that lend their activations to others write: as [`Engine::clean`] keeps it, without effects, and
    /// only as far as it is wanted.
    pub fn outputs(&mut self, tokens: &[&[u32]], keep: &[Keep]) -> Result<Vec<Kept>> {
        let (prompts, positions) = (tokens.len(), tokens[0].len());
        let (width, d_model) = (self.architecture.heads * self.architecture.d_head, self.architecture.d_model);
        let Some(last) = keep.iter().rposition(|k| k.z || k.attention_out || k.mlp_out) else { return Ok(vec![]) };
        let place = position_tensor(prompts, positions)?;
        // No effects are asked for, so the directions do not matter.
        let no_v = tensor(&[1, positions, width], vec![0.0; positions * width])?;
        let no_u = tensor(&[1, positions, d_model], vec![0.0; positions * d_model])?;
        let mut residual = self.embed(tokens, &place)?;
        let mut out = Vec::with_capacity(last + 1);
        for (l, &keep) in keep.iter().enumerate().take(last + 1) {
            if l == last && !keep.mlp_out {
                let (_, kept) = self.attend(l, Input::from(&residual), &place, Input::from(&no_v), keep)?;
                out.push(kept);
                break;
            }
            let block = self.block(l, residual, &place, Input::from(&no_v), Input::from(&no_u), keep)?;
            out.push(block.kept);
            residual = block.residual;
        }
        Ok(out)
    }

    /// One whole block.
    fn block(
        &mut self,
        layer: usize,
        residual: DynValue,
        place: &DynValue,
        v: Input<'_>,
        u: Input<'_>,
        keep: Keep,
    ) -> Result<Block> {
        let (attended, mut kept) = self.attend(layer, Input::from(&residual), place, v, keep)?;
        let Attended { mid, head_effects, write_scale } = attended;
        let mut wanted = vec![HookPoint::ResidPost, HookPoint::MlpEffect];
        wanted.extend(write_scale.is_some().then_some(HookPoint::MlpWriteScale));
        wanted.extend(if keep.post { Posts::points(&self.architecture) } else { &[] });
        wanted.extend(keep.mlp_out.then_some(HookPoint::MlpOut));
        let mut outputs = self.mlp(layer, &residual, &mid, u, &wanted)?;
        kept.mlp_out = outputs.take_if(keep.mlp_out, HookPoint::MlpOut)?;
        kept.post = keep.post.then(|| Posts::take(&self.architecture, &mut outputs)).transpose()?;
        let mlp_effect = outputs.take(HookPoint::MlpEffect)?;
        let of_mlp = outputs.take_if(write_scale.is_some(), HookPoint::MlpWriteScale)?;
        let write_scales = match write_scale.zip(of_mlp) {
            Some((of_attention, of_mlp)) => Some((copied(view(&of_attention)?)?, copied(view(&of_mlp)?)?)),
            None => None,
        };
        let after = outputs.take(HookPoint::ResidPost)?;
        kept.residual_pre = keep.residual_pre.then_some(residual);
        kept.mid = keep.mid.then_some(mid);
        kept.residual_post = keep.residual_post.then(|| runtime::copy(&after)).transpose()?;
        Ok(Block { residual: after, head_effects, mlp_effect, write_scales, kept })
    }

    /// One block's attention, and what is kept of it.
    fn attend(
        &mut self,
        layer: usize,
        residual: Input<'_>,
        place: &DynValue,
        v: Input<'_>,
        keep: Keep,
    ) -> Result<(Attended, Kept)> {
        let is_normed = self.architecture.write_norms;
        let mut wanted = vec![HookPoint::ResidMid, HookPoint::HeadEffects];
        wanted.extend(keep.z.then_some(HookPoint::HookZ));
        wanted.extend(keep.attention_linear.then_some(HookPoint::AttnLinear));
        wanted.extend(keep.attention_out.then_some(HookPoint::AttnOut));
        wanted.extend(is_normed.then_some(HookPoint::AttnWriteScale));
        let mut outputs = self.attention(layer, residual, place, v, &wanted)?;
        let kept = Kept {
            attention_linear: outputs.take_if(keep.attention_linear, HookPoint::AttnLinear)?,
            attention_out: outputs.take_if(keep.attention_out, HookPoint::AttnOut)?,
            z: outputs.take_if(keep.z, HookPoint::HookZ)?,
            ..Kept::default()
        };
        let attended = Attended {
            mid: outputs.take(HookPoint::ResidMid)?,
            head_effects: outputs.take(HookPoint::HeadEffects)?,
            write_scale: outputs.take_if(is_normed, HookPoint::AttnWriteScale)?,
        };
        Ok((attended, kept))
    }

    pub(super) fn embed(&mut self, tokens: &[&[u32]], place: &DynValue) -> Result<DynValue> {
        let ids = token_tensor(tokens)?;
        let mut inputs = vec![(HookPoint::Tokens, Input::from(&ids))];
        if self.architecture.learned_positions() {
            inputs.push((HookPoint::Positions, Input::from(place)));
        }
        self.embed.run(inputs, &[HookPoint::ResidPre])?.take(HookPoint::ResidPre)
    }

    pub(super) fn attention(
        &mut self,
        layer: usize,
        residual: Input<'_>,
        place: &DynValue,
        v: Input<'_>,
        outputs: &[HookPoint],
    ) -> Result<Outputs> {
        let inputs =
            vec![(HookPoint::ResidPre, residual), (HookPoint::Positions, Input::from(place)), (HookPoint::V, v)];
        self.blocks.get(layer)?.attention.run(inputs, outputs)
    }

    /// `residual` is the stream before the block, `mid` the stream with attention added.
    pub(super) fn mlp(
        &mut self,
        layer: usize,
        residual: &DynValue,
        mid: &DynValue,
        u: Input<'_>,
        outputs: &[HookPoint],
    ) -> Result<Outputs> {
        let mut inputs = vec![(HookPoint::ResidMid, Input::from(mid)), (HookPoint::U, u)];
        if self.architecture.parallel {
            inputs.push((HookPoint::ResidPre, Input::from(residual)));
        }
        self.blocks.get(layer)?.mlp.run(inputs, outputs)
    }

    /// Log-probability of each position's target, less that of the wrong token if there is one, [B · S]; prompt by
    /// prompt, because a whole batch's logits would not fit.
    pub fn log_probs(&mut self, clean: &CleanBatch, targets: &[TargetRow]) -> Result<Vec<f32>> {
        let mut out = Vec::with_capacity(clean.effects.prompts * clean.effects.positions);
        for (p, target) in targets.iter().enumerate() {
            let residual = || runtime::rows(&clean.residual_final, p..p + 1);
            let mut log_prob = self.unembed(residual()?, &token_tensor(&[&target.answer])?, HookPoint::LogProb)?;
            if let Some(wrong) = target.wrong {
                let wrong = token_tensor(&[&vec![wrong; target.answer.len()]])?;
                let wrong = self.unembed(residual()?, &wrong, HookPoint::LogProb)?;
                log_prob.iter_mut().zip(wrong).for_each(|(x, wrong)| *x -= wrong);
            }
            out.extend(log_prob);
        }
        Ok(out)
    }

    /// The stream's dot product with `u` and the scale of the final norm, each [B, S].
    pub(super) fn read_out(&mut self, residual: Input<'_>, u: Input<'_>) -> Result<(Vec<f32>, Vec<f32>)> {
        let wanted = [HookPoint::Dot, HookPoint::FinalScale];
        let mut outputs = self.readout.run(vec![(HookPoint::Resid, residual), (HookPoint::U, u)], &wanted)?;
        let (dot, scale) = (outputs.take(HookPoint::Dot)?, outputs.take(HookPoint::FinalScale)?);
        Ok((copied(view(&dot)?)?, copied(view(&scale)?)?))
    }
}

/// What one block gave.
struct Block {
    residual: DynValue,
    head_effects: DynValue,
    mlp_effect: DynValue,
    /// Scales of the norms on what attention and the MLP write, if the model has them.
    write_scales: Option<(Vec<f32>, Vec<f32>)>,
    kept: Kept,
}

/// What one block's attention gave.
struct Attended {
    mid: DynValue,
    head_effects: DynValue,
    write_scale: Option<DynValue>,
}

/// Divides every number of row i, of as many rows as there are scales, by scale i.
pub(super) fn divide_rows(values: &mut [f32], scales: &[f32]) {
    for (row, scale) in values.chunks_exact_mut(values.len() / scales.len()).zip(scales) {
        row.iter_mut().for_each(|v| *v /= scale);
    }
}

impl Directions {
    /// W_O u of a layer's heads, [P, S, H · d_head]; in a model that norms what attention writes, over that norm's scale.
    ///
    /// # Errors
    /// If no clean pass kept it.
    pub fn v(&self, layer: usize) -> Result<&DynValue> {
        self.v.get(layer).and_then(Option::as_ref).context("the clean pass did not keep the directions of the heads")
    }

    /// Takes in the scale of the norm on what a layer's attention writes, [P, S].
    fn norm_attention(&mut self, layer: usize, layers: usize, scale: Vec<f32>) {
        for (biases, scale) in self.attention_bias.chunks_exact_mut(layers).zip(&scale) {
            biases[layer] /= scale;
        }
        self.write_scales.attention.push(scale);
    }

    /// Changes the numbers of the chosen (prompt, position) by those of other directions.
    fn change(
        &mut self,
        other: &Directions,
        chosen: impl Fn(usize, usize) -> bool,
        f: impl Fn(&mut f32, f32),
    ) -> Result<()> {
        let shape = self.u.shape();
        let (prompts, positions) = (shape[0] as usize, shape[1] as usize);
        let apply = |values: &mut [f32], others: &[f32]| {
            let row = values.len() / (prompts * positions);
            for i in (0..prompts * positions).filter(|&i| chosen(i / positions, i % positions)) {
                let rows = values[i * row..(i + 1) * row].iter_mut().zip(&others[i * row..(i + 1) * row]);
                rows.for_each(|(x, &y)| f(x, y));
            }
        };
        apply(view_mut(&mut self.u)?, view(&other.u)?);
        apply(&mut self.attention_bias, &other.attention_bias);
        apply(&mut self.constant, &other.constant);
        Ok(())
    }

    /// Zero at the chosen (prompt, position).
    fn clear(&mut self, prompts: usize, chosen: impl Fn(usize, usize) -> bool) -> Result<()> {
        let clear = |values: &mut [f32]| {
            let positions = self.constant.len() / prompts;
            let row = values.len() / self.constant.len();
            for i in (0..prompts * positions).filter(|&i| chosen(i / positions, i % positions)) {
                values[i * row..(i + 1) * row].fill(0.0);
            }
        };
        clear(view_mut(&mut self.u)?);
        clear(&mut self.attention_bias);
        let mut constant = std::mem::take(&mut self.constant);
        let positions = constant.len() / prompts;
        for i in (0..constant.len()).filter(|&i| chosen(i / positions, i % positions)) {
            constant[i] = 0.0;
        }
        self.constant = constant;
        Ok(())
    }
}

pub(super) fn token_tensor(prompts: &[&[u32]]) -> Result<DynValue> {
    let ids = prompts.iter().flat_map(|p| p.iter().map(|&t| i64::from(t))).collect();
    int_tensor(&[prompts.len(), prompts[0].len()], ids)
}

pub(super) fn position_tensor(batch: usize, positions: usize) -> Result<DynValue> {
    let mut places = try_with_capacity(batch * positions)?;
    places.extend((0..batch).flat_map(|_| 0..positions as i64));
    int_tensor(&[batch, positions], places)
}
