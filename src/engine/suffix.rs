//! Ablated runs: everything before the ablated head is the clean pass's, so only what follows is run, from the stream
//! that the head wrote to, up to the final norm, without unembedding.

use anyhow::{Context, Result, ensure};
use ort::value::DynValue;

use super::Engine;
use super::clean::{CleanBatch, Directions, position_tensor};
use super::runtime::{Input, int_tensor, rows, tensor, view};

/// One run of a batch: a prompt of the clean batch with one head's z replaced.
pub struct AblatedRun {
    /// Index in the clean batch.
    pub prompt: usize,
    pub head: usize,
    /// Replacement z less clean z, [S, d_head].
    pub z_change: Vec<f32>,
}

/// What B ablated runs of one layer gave. Effects are unscaled.
pub struct Ablated {
    /// Heads of the later layers, `head_effects[l − layer − 1]` [B, S, H].
    pub head_effects: Vec<Vec<f32>>,
    /// The first layer whose MLP reads what was ablated: the ablated layer, or the one after it in a parallel block.
    pub first_mlp: usize,
    /// MLPs from there on, `mlp_effects[l − first_mlp]` [B, S].
    pub mlp_effects: Vec<Vec<f32>>,
    /// Final stream · u, [B, S].
    pub dot: Vec<f32>,
    /// Scale of the final norm, [B, S].
    pub norm_scale: Vec<f32>,
}

impl Engine {
    /// Runs the suffix after `layer`'s attention. The runs must all be of one prompt, or of consecutive prompts, one
    /// run each: then the directions are read where the clean pass left them, and nothing is copied a run.
    pub fn ablated(
        &mut self,
        layer: usize,
        clean: &CleanBatch,
        directions: &Directions,
        runs: Vec<AblatedRun>,
    ) -> Result<Ablated> {
        let (layers, d_head, parallel) =
            (self.architecture.layers, self.architecture.d_head, self.architecture.parallel);
        let (batch, positions) = (runs.len(), clean.effects.positions);
        let first = runs.first().context("no runs")?.prompt;
        let shared = runs.iter().all(|r| r.prompt == first);
        ensure!(
            shared || runs.iter().enumerate().all(|(i, r)| r.prompt == first + i),
            "ablated runs must share a prompt or follow each other"
        );
        let prompts = first..if shared { first + 1 } else { first + batch };
        let u = || rows(&directions.u, prompts.clone());

        let heads = runs.iter().map(|r| r.head as i64).collect();
        let changes = runs.into_iter().flat_map(|r| r.z_change).collect();
        let change = tensor(&[batch, positions, d_head], changes)?;
        let base = clean.ablation_base[layer].as_ref().context("the clean pass did not keep this layer's stream")?;
        let graph = self.ablate.get_mut(layer).context("this engine was not loaded for ablate")?;
        let [ablated] = graph.run(
            [
                ("residual", rows(base, prompts.clone())?),
                ("z_change", Input::from(&change)),
                ("head", Input::from(&int_tensor(&[batch], heads)?)),
            ],
            ["ablated"],
        )?;

        let place = position_tensor(batch, positions)?;
        let first_mlp = if parallel { layer + 1 } else { layer };
        let mut out = Ablated { head_effects: vec![], first_mlp, mlp_effects: vec![], dot: vec![], norm_scale: vec![] };
        let mut residual = ablated;
        for l in layer..layers {
            if l > layer {
                let v = rows(&directions.v[l], prompts.clone())?;
                let names = ["residual_mid", "head_effects"];
                let mut outputs = self.attention(l, Input::from(&residual), &place, v, &names)?;
                out.head_effects.push(view(&outputs[1])?.to_vec());
                let mid = outputs.swap_remove(0);
                residual = self.run_mlp(l, &residual, &mid, u()?, &mut out)?;
            } else if first_mlp == layer {
                // What was ablated is the stream after attention; the stream before it is not read again.
                residual = self.run_mlp(l, &residual, &residual, u()?, &mut out)?;
            }
        }
        (out.dot, out.norm_scale) = self.read_out(Input::from(&residual), u()?)?;
        Ok(out)
    }

    fn run_mlp(
        &mut self,
        layer: usize,
        residual: &DynValue,
        mid: &DynValue,
        u: Input<'_>,
        out: &mut Ablated,
    ) -> Result<DynValue> {
        let mut outputs = self.mlp(layer, residual, mid, u, &["residual_post", "mlp_effect"])?;
        out.mlp_effects.push(view(&outputs[1])?.to_vec());
        Ok(outputs.swap_remove(0))
    }
}
