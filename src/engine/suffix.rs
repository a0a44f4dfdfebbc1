//! Ablated runs: everything before the ablated head is the clean pass's, so only what follows is run, from the stream
//! after that layer's attention to the final norm, without unembedding.

use anyhow::{Context, Result, ensure};

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
    /// MLPs from the ablated layer on, `mlp_effects[l − layer]` [B, S].
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
        let a = self.architecture.clone();
        let (batch, positions) = (runs.len(), clean.effects.positions);
        let first = runs.first().context("no runs")?.prompt;
        let shared = runs.iter().all(|r| r.prompt == first);
        ensure!(
            shared || runs.iter().enumerate().all(|(i, r)| r.prompt == first + i),
            "ablated runs must share a prompt or follow each other"
        );
        let prompts = first..if shared { first + 1 } else { first + batch };
        let u = || rows(&directions.u, prompts.clone());

        let heads = runs.iter().map(|r| (layer * a.heads + r.head) as i64).collect();
        let changes = runs.into_iter().flat_map(|r| r.z_change).collect();
        let change = tensor(&[batch, positions, a.d_head], changes)?;
        let base = clean.residual_mid[layer].as_ref().context("the clean pass did not keep this layer's stream")?;
        let graph = self.ablate.as_mut().context("this engine was not loaded for ablate")?;
        let [mut mid] = graph.run(
            [
                ("residual", rows(base, prompts.clone())?),
                ("z_change", Input::from(&change)),
                ("head", Input::from(&int_tensor(&[batch], heads)?)),
            ],
            ["residual_mid"],
        )?;

        let place = position_tensor(batch, positions)?;
        let mut out = Ablated { head_effects: vec![], mlp_effects: vec![], dot: vec![], norm_scale: vec![] };
        for l in layer..a.layers {
            let inputs = [("residual_mid", Input::from(&mid)), ("u", u()?)];
            let [residual, effect] = self.mlp[l].run(inputs, ["residual_post", "mlp_effect"])?;
            out.mlp_effects.push(view(&effect)?.to_vec());
            if l + 1 == a.layers {
                (out.dot, out.norm_scale) = self.read_out(Input::from(&residual), u()?)?;
                break;
            }
            let v = rows(&directions.v[l + 1], prompts.clone())?;
            let inputs = [("residual", (&residual).into()), ("positions", (&place).into()), ("v", v)];
            let effects;
            [mid, effects] = self.attention[l + 1].run(inputs, ["residual_mid", "head_effects"])?;
            out.head_effects.push(view(&effects)?.to_vec());
        }
        Ok(out)
    }
}
