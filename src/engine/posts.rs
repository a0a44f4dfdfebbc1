//! The activations of a layer's neurons.

use anyhow::Result;
use ort::value::DynValue;
use selfrepair_core::memory::{copied, try_with_capacity};
use selfrepair_model::{Architecture, Experts};

use crate::hooks::{HookPoint, Outputs};
use crate::runtime::{tensor, view};

/// What a layer's neurons were in B runs.
pub struct Posts {
    /// Activations before W_out, [B, S, M]. In a mixture of experts, they have the weights of their experts, and are zero
    /// where an expert was not chosen.
    pub neurons: DynValue,
    /// What the biases of experts wrote · u, unscaled, [B, S]; empty where experts have none. They are part of the MLP, but
    /// of no neuron.
    pub expert_biases: Vec<f32>,
}

impl Posts {
    /// What is to be asked for where they are wanted.
    pub(super) fn points(a: &Architecture) -> &'static [HookPoint] {
        match (&a.experts, a.biases.mlp_out) {
            (None, _) => &[HookPoint::MlpPost],
            (Some(_), false) => &[HookPoint::MlpPost, HookPoint::ExpertIndices],
            (Some(_), true) => &[HookPoint::MlpPost, HookPoint::ExpertIndices, HookPoint::ExpertBiasEffect],
        }
    }

    pub(super) fn take(a: &Architecture, outputs: &mut Outputs) -> Result<Self> {
        let neurons = outputs.take(HookPoint::MlpPost)?;
        let Some(experts) = &a.experts else { return Ok(Self { neurons, expert_biases: vec![] }) };
        let neurons = all_neurons(experts, &neurons, &outputs.take(HookPoint::ExpertIndices)?)?;
        let expert_biases = match a.biases.mlp_out {
            true => copied(view(&outputs.take(HookPoint::ExpertBiasEffect)?)?)?,
            false => vec![],
        };
        Ok(Self { neurons, expert_biases })
    }
}

/// All neurons from those of the chosen experts.
fn all_neurons(experts: &Experts, computed: &DynValue, indices: &DynValue) -> Result<DynValue> {
    let (shape, computed) = computed.try_extract_tensor::<f32>()?;
    let chosen = indices.try_extract_tensor::<i64>()?.1;
    let rows = chosen.len() / experts.chosen;
    let mut all = try_with_capacity(rows * experts.all_neurons())?;
    all.resize(rows * experts.all_neurons(), 0.0);
    let by_row = all.chunks_exact_mut(experts.all_neurons()).zip(computed.chunks_exact(experts.active_neurons()));
    for ((all, computed), chosen) in by_row.zip(chosen.chunks_exact(experts.chosen)) {
        let (by_slot, shared) = computed.split_at(experts.chosen * experts.neurons);
        for (&expert, neurons) in chosen.iter().zip(by_slot.chunks_exact(experts.neurons)) {
            let first = expert as usize * experts.neurons;
            all[first..first + experts.neurons].copy_from_slice(neurons);
        }
        all[experts.count * experts.neurons..].copy_from_slice(shared);
    }
    tensor(&[shape[0] as usize, shape[1] as usize, experts.all_neurons()], all)
}
