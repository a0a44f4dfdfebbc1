//! The clean pass over a batch of prompts.

use anyhow::{Context, Result};
use ort::value::DynValue;

use super::Engine;
use super::runtime::{self, Input, int_tensor, tensor, view};

/// What the stream and every `z` are projected on: a direction a prompt position.
pub struct Directions {
    /// u = γ ⊙ Ŵ[target], [P, S, D].
    pub u: DynValue,
    /// W_O u of every layer, [P, S, H · d_head].
    pub v: Vec<DynValue>,
    /// b_O' · u, [P, S, layers]; empty for a model without such biases.
    pub attention_bias: Vec<f32>,
    /// k, the part of the logit that no component writes, [P, S].
    pub constant: Vec<f32>,
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
}

/// A clean pass over B prompts.
pub struct CleanBatch {
    pub effects: CleanEffects,
    /// The stream that ablating a head of a layer changes, [B, S, D], of the layers asked for: after attention, or
    /// after the whole block where attention and MLP are parallel.
    pub ablation_base: Vec<Option<DynValue>>,
    /// z, [B, S, H · d_head], of the layers asked for.
    pub z: Vec<Option<DynValue>>,
    /// The neurons, [B, S, M], of the layers asked for with `post`.
    pub post: Vec<Option<DynValue>>,
    /// The stream after the last block, [B, S, D].
    pub residual_final: DynValue,
}

/// Which layers' tensors a clean pass keeps.
#[derive(Clone, Copy, Default)]
pub struct Keep {
    pub ablation_base: bool,
    pub z: bool,
    pub post: bool,
}

impl Engine {
    /// The directions of `targets`, prompts of equal length.
    pub fn directions(&mut self, targets: &[&[u32]]) -> Result<Directions> {
        let a = &self.architecture;
        let mut outputs: Vec<String> = vec!["u".into()];
        outputs.extend((0..a.layers).map(|l| format!("v_{l}")));
        outputs.extend(a.has_attention_bias().then(|| "attention_bias".into()));
        outputs.extend(a.has_constant().then(|| "constant".into()));
        let names: Vec<&str> = outputs.iter().map(String::as_str).collect();
        let ids = token_tensor(targets)?;
        let mut values = self.directions.run_all([("targets", Input::from(&ids))], &names)?;
        let constant = match a.has_constant() {
            true => take(&mut values)?,
            false => vec![0.0; targets.len() * targets[0].len()],
        };
        let attention_bias = if a.has_attention_bias() { take(&mut values)? } else { vec![] };
        let v = values.split_off(1);
        Ok(Directions { u: values.remove(0), v, attention_bias, constant })
    }

    /// Runs prompts of equal length; `keep[l]` says what to keep of layer l (nothing beyond the end of `keep`).
    pub fn clean(&mut self, tokens: &[&[u32]], directions: &Directions, keep: &[Keep]) -> Result<CleanBatch> {
        let (prompts, positions) = (tokens.len(), tokens[0].len());
        let layers = self.architecture.layers;
        let place = position_tensor(prompts, positions)?;
        let mut residual = self.embed(tokens, &place)?;
        let (embed, _) = self.read_out(Input::from(&residual), Input::from(&directions.u))?;
        let (mut heads, mut mlps) = (Vec::with_capacity(layers), Vec::with_capacity(layers));
        let (mut bases, mut kept_z, mut kept_post) = (Vec::new(), Vec::new(), Vec::new());
        for l in 0..layers {
            let keep = keep.get(l).copied().unwrap_or_default();
            let wanted: &[&str] =
                if keep.z { &["residual_mid", "head_effects", "z"] } else { &["residual_mid", "head_effects"] };
            let v = Input::from(&directions.v[l]);
            let mut outputs = self.attention(l, Input::from(&residual), &place, v, wanted)?;
            kept_z.push(if keep.z { outputs.pop() } else { None });
            heads.push(view(&outputs[1])?.to_vec());
            let mid = outputs.swap_remove(0);

            let wanted: &[&str] =
                if keep.post { &["residual_post", "mlp_effect", "post"] } else { &["residual_post", "mlp_effect"] };
            let mut outputs = self.mlp(l, &residual, &mid, Input::from(&directions.u), wanted)?;
            kept_post.push(if keep.post { outputs.pop() } else { None });
            mlps.push(view(&outputs[1])?.to_vec());
            residual = outputs.swap_remove(0);
            bases.push(match (keep.ablation_base, self.architecture.parallel) {
                (false, _) => None,
                (true, false) => Some(mid),
                (true, true) => Some(runtime::copy(&residual)?),
            });
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
        };
        Ok(CleanBatch { effects, ablation_base: bases, z: kept_z, post: kept_post, residual_final: residual })
    }

    /// z, [B, S, H · d_head], of the layers in `wanted`, for prompts that lend their z to others.
    pub fn z(&mut self, tokens: &[&[u32]], wanted: &[bool]) -> Result<Vec<Option<DynValue>>> {
        let (prompts, positions) = (tokens.len(), tokens[0].len());
        let (width, d_model) = (self.architecture.heads * self.architecture.d_head, self.architecture.d_model);
        let last = wanted.iter().rposition(|&w| w);
        let place = position_tensor(prompts, positions)?;
        // No effects are asked for, so the directions do not matter.
        let no_v = tensor(&[1, positions, width], vec![0.0; positions * width])?;
        let no_u = tensor(&[1, positions, d_model], vec![0.0; positions * d_model])?;
        let mut residual = self.embed(tokens, &place)?;
        let mut out = Vec::with_capacity(wanted.len());
        for (l, &is_wanted) in wanted.iter().enumerate().take(last.map_or(0, |l| l + 1)) {
            let names = ["residual_mid", "z"];
            let mut outputs = self.attention(l, Input::from(&residual), &place, Input::from(&no_v), &names)?;
            out.push(if is_wanted { outputs.pop() } else { None });
            if Some(l) != last {
                let mid = outputs.swap_remove(0);
                residual = self.mlp(l, &residual, &mid, Input::from(&no_u), &["residual_post"])?.swap_remove(0);
            }
        }
        Ok(out)
    }

    fn embed(&mut self, tokens: &[&[u32]], place: &DynValue) -> Result<DynValue> {
        let ids = token_tensor(tokens)?;
        let mut inputs = vec![("tokens", Input::from(&ids))];
        if self.architecture.learned_positions() {
            inputs.push(("positions", Input::from(place)));
        }
        Ok(self.embed.run_all(inputs, &["residual"])?.swap_remove(0))
    }

    pub(super) fn attention(
        &mut self,
        layer: usize,
        residual: Input<'_>,
        place: &DynValue,
        v: Input<'_>,
        outputs: &[&str],
    ) -> Result<Vec<DynValue>> {
        let inputs = [("residual", residual), ("positions", Input::from(place)), ("v", v)];
        self.attention[layer].run_all(inputs, outputs)
    }

    /// `residual` is the stream before the block, `mid` the stream with attention added.
    pub(super) fn mlp(
        &mut self,
        layer: usize,
        residual: &DynValue,
        mid: &DynValue,
        u: Input<'_>,
        outputs: &[&str],
    ) -> Result<Vec<DynValue>> {
        let mut inputs = vec![("residual_mid", Input::from(mid)), ("u", u)];
        if self.architecture.parallel {
            inputs.push(("residual", Input::from(residual)));
        }
        self.mlp[layer].run_all(inputs, outputs)
    }

    /// Log-probability of each position's target, [B · S], prompt by prompt: a whole batch's logits would not fit.
    pub fn log_probs(&mut self, clean: &CleanBatch, targets: &[&[u32]]) -> Result<Vec<f32>> {
        let mut out = Vec::with_capacity(clean.effects.prompts * clean.effects.positions);
        for (p, target) in targets.iter().enumerate() {
            let residual = runtime::rows(&clean.residual_final, p..p + 1)?;
            out.extend(self.unembed(residual, &token_tensor(&[target])?, "log_prob")?);
        }
        Ok(out)
    }

    /// The stream's dot product with `u` and the scale of the final norm, each [B, S].
    pub(super) fn read_out(&mut self, residual: Input<'_>, u: Input<'_>) -> Result<(Vec<f32>, Vec<f32>)> {
        let [dot, scale] = self.readout.run([("residual", residual), ("u", u)], ["dot", "norm_scale"])?;
        Ok((view(&dot)?.to_vec(), view(&scale)?.to_vec()))
    }
}

/// The numbers of the last of some outputs, which is taken away.
fn take(values: &mut Vec<DynValue>) -> Result<Vec<f32>> {
    let value = values.pop().context("a graph gave too few outputs")?;
    Ok(view(&value)?.to_vec())
}

pub(super) fn token_tensor(prompts: &[&[u32]]) -> Result<DynValue> {
    let ids = prompts.iter().flat_map(|p| p.iter().map(|&t| i64::from(t))).collect();
    int_tensor(&[prompts.len(), prompts[0].len()], ids)
}

pub(super) fn position_tensor(batch: usize, positions: usize) -> Result<DynValue> {
    int_tensor(&[batch, positions], (0..batch).flat_map(|_| 0..positions as i64).collect())
}
