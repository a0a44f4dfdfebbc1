//! The clean pass over a batch of prompts.

use anyhow::Result;
use ort::value::DynValue;

use super::Engine;
use super::runtime::{self, Input, int_tensor, tensor, view};

/// What the stream and every `z` are projected on: a direction a prompt position.
pub struct Directions {
    /// u = γ ⊙ Ŵ[target], [P, S, D].
    pub u: DynValue,
    /// W_O u of every layer, [P, S, H · d_head].
    pub v: Vec<DynValue>,
}

/// The effects of every component in a clean pass over B prompts, unscaled (see the module's head).
pub struct CleanEffects {
    pub prompts: usize,
    pub positions: usize,
    /// The embedding's, [B, S].
    pub embed: Vec<f32>,
    /// Each layer's heads', [B, S, H].
    pub heads: Vec<Vec<f32>>,
    /// Each layer's MLP's, [B, S].
    pub mlps: Vec<Vec<f32>>,
    /// Final stream · u, [B, S].
    pub dot: Vec<f32>,
    /// Scale of the final norm, [B, S].
    pub norm_scale: Vec<f32>,
}

/// A clean pass over B prompts.
pub struct CleanBatch {
    pub effects: CleanEffects,
    /// The stream after attention, [B, S, D], of the layers asked for.
    pub residual_mid: Vec<Option<DynValue>>,
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
    pub residual_mid: bool,
    pub z: bool,
    pub post: bool,
}

impl Engine {
    /// The directions of `targets`, prompts of equal length.
    pub fn directions(&mut self, targets: &[&[u32]]) -> Result<Directions> {
        let targets = token_tensor(targets)?;
        let names: Vec<String> = (0..self.architecture.layers).map(|l| format!("v_{l}")).collect();
        let mut outputs = vec!["u"];
        outputs.extend(names.iter().map(String::as_str));
        let mut values = self.directions.run_all([("targets", Input::from(&targets))], &outputs)?;
        let v = values.split_off(1);
        let u = values.remove(0);
        Ok(Directions { u, v })
    }

    /// Runs prompts of equal length; `keep[l]` says what to keep of layer l (nothing beyond the end of `keep`).
    pub fn clean(&mut self, tokens: &[&[u32]], directions: &Directions, keep: &[Keep]) -> Result<CleanBatch> {
        let (prompts, positions) = (tokens.len(), tokens[0].len());
        let layers = self.architecture.layers;
        let place = position_tensor(prompts, positions)?;
        let [mut residual] = self.embed.run([("tokens", Input::from(&token_tensor(tokens)?))], ["residual"])?;
        let (embed, _) = self.read_out(Input::from(&residual), Input::from(&directions.u))?;
        let (mut heads, mut mlps) = (Vec::with_capacity(layers), Vec::with_capacity(layers));
        let (mut kept_mid, mut kept_z, mut kept_post) = (Vec::new(), Vec::new(), Vec::new());
        for l in 0..layers {
            let keep = keep.get(l).copied().unwrap_or_default();
            let inputs =
                [("residual", (&residual).into()), ("positions", (&place).into()), ("v", (&directions.v[l]).into())];
            let wanted: &[&str] =
                if keep.z { &["residual_mid", "head_effects", "z"] } else { &["residual_mid", "head_effects"] };
            let mut outputs = self.attention[l].run_all(inputs, wanted)?;
            kept_z.push(if keep.z { outputs.pop() } else { None });
            heads.push(view(&outputs[1])?.to_vec());
            let mid = outputs.swap_remove(0);

            let inputs = [("residual_mid", (&mid).into()), ("u", (&directions.u).into())];
            let wanted: &[&str] =
                if keep.post { &["residual_post", "mlp_effect", "post"] } else { &["residual_post", "mlp_effect"] };
            let mut outputs = self.mlp[l].run_all(inputs, wanted)?;
            kept_post.push(if keep.post { outputs.pop() } else { None });
            mlps.push(view(&outputs[1])?.to_vec());
            residual = outputs.swap_remove(0);
            kept_mid.push(keep.residual_mid.then_some(mid));
        }
        let (dot, norm_scale) = self.read_out(Input::from(&residual), Input::from(&directions.u))?;
        Ok(CleanBatch {
            effects: CleanEffects { prompts, positions, embed, heads, mlps, dot, norm_scale },
            residual_mid: kept_mid,
            z: kept_z,
            post: kept_post,
            residual_final: residual,
        })
    }

    /// z, [B, S, H · d_head], of the layers in `wanted`, for prompts that lend their z to others.
    pub fn z(&mut self, tokens: &[&[u32]], wanted: &[bool]) -> Result<Vec<Option<DynValue>>> {
        let (prompts, positions) = (tokens.len(), tokens[0].len());
        let width = self.architecture.heads * self.architecture.d_head;
        let last = wanted.iter().rposition(|&w| w);
        let place = position_tensor(prompts, positions)?;
        // No effects are asked for, so the directions do not matter.
        let no_v = tensor(&[1, positions, width], vec![0.0; positions * width])?;
        let no_u =
            tensor(&[1, positions, self.architecture.d_model], vec![0.0; positions * self.architecture.d_model])?;
        let [mut residual] = self.embed.run([("tokens", Input::from(&token_tensor(tokens)?))], ["residual"])?;
        let mut out = Vec::with_capacity(wanted.len());
        for (l, &is_wanted) in wanted.iter().enumerate().take(last.map_or(0, |l| l + 1)) {
            let inputs = [("residual", (&residual).into()), ("positions", (&place).into()), ("v", (&no_v).into())];
            let [mid, z] = self.attention[l].run(inputs, ["residual_mid", "z"])?;
            out.push(is_wanted.then_some(z));
            if Some(l) != last {
                [residual] =
                    self.mlp[l].run([("residual_mid", (&mid).into()), ("u", (&no_u).into())], ["residual_post"])?;
            }
        }
        Ok(out)
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

pub(super) fn token_tensor(prompts: &[&[u32]]) -> Result<DynValue> {
    let ids = prompts.iter().flat_map(|p| p.iter().map(|&t| i64::from(t))).collect();
    int_tensor(&[prompts.len(), prompts[0].len()], ids)
}

pub(super) fn position_tensor(batch: usize, positions: usize) -> Result<DynValue> {
    int_tensor(&[batch, positions], (0..batch).flat_map(|_| 0..positions as i64).collect())
}
