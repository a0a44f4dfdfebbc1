//! What families with mixtures of experts share.

use anyhow::{Result, ensure};

use super::common::{MOST_NUMBERED, check_parameters, linear};
use crate::architecture::Architecture;
use crate::checkpoint::Checkpoint;
use crate::mlp::{ExpertWeighting, ExpertWeights, Experts, Mlp, MlpWeights, SharedExpert};

/// Makes the model's MLPs mixtures of experts with the family's names of sizes: how many experts there are, how many a
/// router chooses at a position, and how many neurons each has.
pub fn mix(
    c: &Checkpoint,
    a: &mut Architecture,
    [count, chosen, neurons]: [&str; 3],
    weights: ExpertWeighting,
) -> Result<()> {
    let experts = Experts {
        count: c.size(count)?,
        chosen: c.size(chosen)?,
        neurons: c.size(neurons)?,
        shared_neurons: 0,
        weights,
        clamped_gate: None,
    };
    ensure!(
        experts.chosen <= experts.count,
        "`{chosen}` is {}; expected at most the {} experts that there are (`{count}`)",
        experts.chosen,
        experts.count
    );
    for (what, number) in [("experts", experts.count), ("neurons in an expert", experts.neurons)] {
        ensure!(
            number <= MOST_NUMBERED,
            "the configuration speaks of {number} {what}; expected at most {MOST_NUMBERED}"
        );
    }
    set(a, experts)
}

/// Adds an expert that every position goes through.
pub fn share(a: &mut Architecture, neurons: usize) -> Result<()> {
    ensure!(
        neurons <= MOST_NUMBERED,
        "the configuration speaks of {neurons} neurons in a shared expert; expected at most {MOST_NUMBERED}"
    );
    match a.experts.take() {
        Some(experts) => set(a, Experts { shared_neurons: neurons, ..experts }),
        None => Ok(()),
    }
}

fn set(a: &mut Architecture, experts: Experts) -> Result<()> {
    a.d_mlp = experts.all_neurons();
    a.experts = Some(experts);
    check_parameters(a)
}

/// How many experts a model has, and of how many neurons.
pub fn sizes(a: &Architecture) -> (usize, usize) {
    a.experts.as_ref().map_or((0, 0), |experts| (experts.count, experts.neurons))
}

/// Experts that are stored one by one: `NAME.{expert}.{gate, up, down}.weight`.
pub fn one_by_one(
    c: &Checkpoint,
    a: &Architecture,
    router: &str,
    experts: &str,
    parts: [&str; 3],
    shared: Option<SharedExpert>,
) -> Result<MlpWeights> {
    let (count, neurons) = sizes(a);
    let expert = |e: usize| gated(c, a, parts.map(|part| format!("{experts}.{e}.{part}")), neurons);
    let weights = ExpertWeights {
        router: linear(c, router, a.d_model, count, false)?,
        experts: (0..count).map(expert).collect::<Result<_>>()?,
        shared,
    };
    Ok(MlpWeights::Experts(Box::new(weights)))
}

/// An MLP without biases, from the names of its gate, its other input and its output.
pub fn gated(c: &Checkpoint, a: &Architecture, [gate, up, down]: [String; 3], neurons: usize) -> Result<Mlp> {
    Ok(Mlp {
        gate: Some(linear(c, &gate, a.d_model, neurons, false)?),
        up: linear(c, &up, a.d_model, neurons, false)?,
        down: linear(c, &down, neurons, a.d_model, false)?,
    })
}
