//! Ablated runs. Everything before the ablated component is unchanged, so only the suffix runs: from the stream after
//! the component to the final norm, without unembedding.

use std::ops::Range;

use anyhow::{Context, Result};
use ort::value::DynValue;

use super::Engine;
use super::clean::{CleanBatch, Directions, Kept, WriteScales, position_tensor};
use super::hooks::{HookPoint, Outputs};
use super::next_readers::{HeadChange, Part};
use super::posts::Posts;
use super::runtime::{Input, bool_tensor, rows, rows_of, to_host, view};
use selfrepair_core::memory::copied;

/// Where in a block a suffix starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// After attention, before the MLP reads.
    Mid,
    /// After the block.
    Post,
}

/// B ablated runs from the same place on.
pub struct Suffix<'a> {
    pub layer: usize,
    pub place: Place,
    /// The ablated stream there, [B, S, D].
    pub stream: DynValue,
    /// The prompts of the clean batch that the runs are of: one that all share, or one each.
    pub prompts: Range<usize>,
    /// If each run replaced one head and nothing is held: how its first readers get to know.
    pub change: Option<HeadChange<'a>>,
    /// Later components held at their clean values; the clean pass must have kept every layer's z and MLP output.
    pub hold: Option<&'a HoldMasks>,
    /// Layers whose neurons are wanted.
    pub neurons: &'a [usize],
    /// Whether the final stream is wanted.
    pub residual_final: bool,
    pub clean: &'a CleanBatch,
    pub directions: &'a Directions,
}

impl Suffix<'_> {
    /// The layer that reads first what the stream became.
    fn first_reader(&self) -> usize {
        if self.place == Place::Mid { self.layer } else { self.layer + 1 }
    }

    fn reads_first(&self, layer: usize) -> bool {
        layer == self.first_reader()
    }

    /// Where a layer's MLP is held, what it writes was normed by the clean scale.
    fn hold_scale(&self, layer: usize, scale: &mut [f32]) -> Result<()> {
        let Some(masks) = self.hold else { return Ok(()) };
        let held = masks.mlps[layer].try_extract_tensor::<bool>()?.1;
        let clean = &self.directions.write_scales.mlp[layer];
        let positions = clean.len() / self.clean.effects.prompts;
        let rows = self.prompts.start * positions..self.prompts.end * positions;
        let of_clean = held[rows.clone()].iter().zip(&clean[rows]).cycle();
        for (scale, (_, clean)) in scale.iter_mut().zip(of_clean).filter(|(_, (held, _))| **held) {
            *scale = *clean;
        }
        Ok(())
    }
}

/// Which components are held where, for every prompt of a clean batch.
pub struct HoldMasks {
    /// Of each layer, [P, S, H].
    heads: Vec<DynValue>,
    /// Of each layer, [P, S].
    mlps: Vec<DynValue>,
}

impl HoldMasks {
    /// `head(i, layer, head)` and `mlp(i, layer)` say whether a component is held at row i of the clean batch.
    pub fn new(
        clean: &CleanBatch,
        head: impl Fn(usize, usize, usize) -> bool,
        mlp: impl Fn(usize, usize) -> bool,
    ) -> Result<Self> {
        let (prompts, positions) = (clean.effects.prompts, clean.effects.positions);
        let rows = prompts * positions;
        let layers = clean.effects.heads.len();
        let heads = clean.effects.heads[0].len() / rows;
        let of_heads = |l| {
            let held = (0..rows * heads).map(|i| head(i / heads, l, i % heads)).collect();
            bool_tensor(&[prompts, positions, heads], held)
        };
        let of_mlp = |l| bool_tensor(&[prompts, positions], (0..rows).map(|i| mlp(i, l)).collect());
        Ok(Self {
            heads: (0..layers).map(of_heads).collect::<Result<_>>()?,
            mlps: (0..layers).map(of_mlp).collect::<Result<_>>()?,
        })
    }
}

/// What B ablated runs of one layer gave. Effects are unscaled.
pub struct Ablated {
    /// Heads of the later layers, `head_effects[l − layer − 1]` [B, S, H].
    pub head_effects: Vec<Vec<f32>>,
    /// The first layer whose MLP reads what was ablated: the suffix's layer, or the one after it.
    pub first_mlp: usize,
    /// MLPs from there on, `mlp_effects[l − first_mlp]` [B, S].
    pub mlp_effects: Vec<Vec<f32>>,
    /// Scales of the norms on what these heads' attentions and these MLPs write, in the same order; empty in a model
    /// without such norms. Effects of heads are by the clean scales, those of MLPs by these.
    pub write_scales: WriteScales,
    /// The neurons of the layers asked for, as far as they run again.
    pub posts: Vec<(usize, Posts)>,
    /// Final stream · u, [B, S].
    pub dot: Vec<f32>,
    /// Scale of the final norm, [B, S].
    pub norm_scale: Vec<f32>,
    /// The stream after the last block, [B, S, D], if it was asked for.
    pub residual_final: Option<DynValue>,
}

impl Engine {
    /// The clean streams of `prompts` with one head's z changed in each run, [B, S, D], on the device: after attention, or
    /// after the whole block where the two are parallel. `z_changes` is [B, S, d_head], replacement less clean, and `heads`
    /// \[B\] says whose.
    pub fn replace_heads(
        &mut self,
        layer: usize,
        base: &DynValue,
        prompts: Range<usize>,
        heads: &DynValue,
        z_changes: &DynValue,
    ) -> Result<DynValue> {
        let inputs = vec![
            (HookPoint::Resid, rows(base, prompts)?),
            (HookPoint::ZChange, Input::from(z_changes)),
            (HookPoint::Head, Input::from(heads)),
        ];
        let clean = base.shape();
        let shape = [heads.shape()[0], clean[1], clean[2]];
        let mut block = self.blocks.get(layer)?;
        block.ablate()?.run_on_device(inputs, &[HookPoint::Ablated], &shape)?.take(HookPoint::Ablated)
    }

    /// As [`Engine::replace_heads`], in a model that norms what attention writes; `kept` is what the clean pass kept of the
    /// layer. Before that norm, `along` [B, S] is added along γ_post ⊙ u, as a dot product with it. Also gives the norm's
    /// new scale, [B, S].
    pub fn replace_heads_before_norm(
        &mut self,
        layer: usize,
        kept: &Kept,
        prompts: Range<usize>,
        [heads, z_changes, along]: [&DynValue; 3],
        directions: &Directions,
    ) -> Result<(DynValue, Vec<f32>)> {
        let mid = kept.mid.as_ref().context("the clean pass did not keep the stream after attention")?;
        let written = kept.attention_out.as_ref().context("the clean pass did not keep what attention writes")?;
        let linear = kept.attention_linear.as_ref().context("the clean pass did not keep what attention gives")?;
        let inputs = vec![
            (HookPoint::ResidMid, rows(mid, prompts.clone())?),
            (HookPoint::AttnOut, rows(written, prompts.clone())?),
            (HookPoint::AttnLinear, rows(linear, prompts.clone())?),
            (HookPoint::ZChange, Input::from(z_changes)),
            (HookPoint::Head, Input::from(heads)),
            (HookPoint::U, rows(&directions.u, prompts)?),
            (HookPoint::Along, Input::from(along)),
        ];
        let clean = mid.shape();
        let shape = [heads.shape()[0], clean[1], clean[2]];
        let wanted = [HookPoint::Ablated, HookPoint::AttnWriteScale];
        let mut outputs = self.blocks.get(layer)?.ablate()?.run_on_device(inputs, &wanted, &shape)?;
        let scale = copied(view(&outputs.take(HookPoint::AttnWriteScale)?)?)?;
        Ok((outputs.take(HookPoint::Ablated)?, scale))
    }

    /// Runs what follows. The directions are read where the clean pass left them, and nothing is copied a run.
    pub fn suffix(&mut self, s: Suffix) -> Result<Ablated> {
        let (layers, shape) = (self.architecture.layers, s.stream.shape().to_vec());
        let place = position_tensor(shape[0] as usize, shape[1] as usize)?;
        let first_mlp = s.first_reader();
        let (mut head_effects, mut mlp_effects, mut posts) = (vec![], vec![], vec![]);
        let mut write_scales = WriteScales::default();
        let mut residual = None;
        for l in s.layer..layers {
            let mid = match (&residual, l == s.layer, s.place) {
                (_, true, Place::Post) => continue,
                // What was ablated is the stream after attention; the stream before it is not read again.
                (_, true, Place::Mid) => None,
                (before, false, _) => {
                    let mut outputs = self.attention_of(l, before.as_ref().unwrap_or(&s.stream), &place, &s)?;
                    head_effects.push(copied(view(&outputs.take(HookPoint::HeadEffects)?)?)?);
                    if self.architecture.write_norms {
                        write_scales.attention.push(copied(view(&outputs.take(HookPoint::AttnWriteScale)?)?)?);
                    }
                    Some(outputs.take(HookPoint::ResidMid)?)
                }
            };
            let before = residual.as_ref().unwrap_or(&s.stream);
            let mut outputs = self.mlp_of(l, before, mid.as_ref().unwrap_or(before), &s)?;
            if s.neurons.contains(&l) {
                posts.push((l, Posts::take(&self.architecture, &mut outputs)?));
            }
            mlp_effects.push(copied(view(&outputs.take(HookPoint::MlpEffect)?)?)?);
            if self.architecture.write_norms {
                let mut scale = copied(view(&outputs.take(HookPoint::MlpWriteScale)?)?)?;
                s.hold_scale(l, &mut scale)?;
                write_scales.mlp.push(scale);
            }
            residual = Some(outputs.take(HookPoint::ResidPost)?);
        }
        let residual = residual.unwrap_or(s.stream);
        let u = rows(&s.directions.u, s.prompts)?;
        let (dot, norm_scale) = self.read_out(Input::from(&residual), u)?;
        let residual_final = s.residual_final.then(|| to_host(residual)).transpose()?;
        Ok(Ablated { head_effects, first_mlp, mlp_effects, write_scales, posts, dot, norm_scale, residual_final })
    }

    /// The stream after the attention of a later layer, its heads' effects, and the scale of the norm on what it writes if
    /// there is one.
    fn attention_of(&mut self, layer: usize, residual: &DynValue, place: &DynValue, s: &Suffix) -> Result<Outputs> {
        let v = rows(s.directions.v(layer)?, s.prompts.clone())?;
        let mut wanted = vec![HookPoint::ResidMid, HookPoint::HeadEffects];
        wanted.extend(self.architecture.write_norms.then_some(HookPoint::AttnWriteScale));
        let mut inputs = vec![
            (HookPoint::ResidPre, Input::from(residual)),
            (HookPoint::Positions, Input::from(place)),
            (HookPoint::V, v),
        ];
        match (&s.change, s.hold) {
            (Some(change), _) if s.reads_first(layer) => {
                self.read_first(layer, Part::Attention, inputs, s.prompts.clone(), s.stream.shape(), change, &wanted)
            }
            (_, None) => self.blocks.get(layer)?.attention.run_on_device(inputs, &wanted, s.stream.shape()),
            (_, Some(masks)) => {
                let z = s.clean.layers[layer].z.as_ref().context("the clean pass did not keep z")?;
                inputs.push((HookPoint::Held, rows_of::<bool>(&masks.heads[layer], s.prompts.clone())?));
                inputs.push((HookPoint::HeldZ, rows(z, s.prompts.clone())?));
                self.blocks.get(layer)?.attention_held()?.run_on_device(inputs, &wanted, s.stream.shape())
            }
        }
    }

    /// The stream after a block, its MLP's effect, and its neurons if they are wanted.
    fn mlp_of(&mut self, layer: usize, residual: &DynValue, mid: &DynValue, s: &Suffix) -> Result<Outputs> {
        let mut wanted = vec![HookPoint::ResidPost, HookPoint::MlpEffect];
        wanted.extend(if s.neurons.contains(&layer) { Posts::points(&self.architecture) } else { &[] });
        wanted.extend(self.architecture.write_norms.then_some(HookPoint::MlpWriteScale));
        let u = rows(&s.directions.u, s.prompts.clone())?;
        let mut inputs = vec![(HookPoint::ResidMid, Input::from(mid)), (HookPoint::U, u)];
        inputs.extend(self.architecture.parallel.then(|| (HookPoint::ResidPre, Input::from(residual))));
        if let Some(change) = s.change.as_ref().filter(|_| s.reads_first(layer)) {
            return self.read_first(layer, Part::Mlp, inputs, s.prompts.clone(), s.stream.shape(), change, &wanted);
        }
        let Some(masks) = s.hold else {
            return self.blocks.get(layer)?.mlp.run_on_device(inputs, &wanted, s.stream.shape());
        };
        let output = s.clean.layers[layer].mlp_out.as_ref().context("the clean pass did not keep the MLP's output")?;
        inputs.push((HookPoint::Held, rows_of::<bool>(&masks.mlps[layer], s.prompts.clone())?));
        inputs.push((HookPoint::HeldMlpOut, rows(output, s.prompts.clone())?));
        self.blocks.get(layer)?.mlp_held()?.run_on_device(inputs, &wanted, s.stream.shape())
    }
}
