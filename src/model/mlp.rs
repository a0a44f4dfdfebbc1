//! The weights of MLPs: one that every position goes through, or a mixture of experts.

use crate::architecture::Linear;

/// MLPs that are mixtures of experts: a router chooses some of many small MLPs at each position, and what they write is
/// added with the router's weights. A neuron is one of an expert; its activation has the weight of its expert.
#[derive(Debug, Clone, PartialEq)]
pub struct Experts {
    pub count: usize,
    /// How many of them the router chooses at a position.
    pub chosen: usize,
    /// Neurons of each.
    pub neurons: usize,
    /// Neurons of the expert that every position goes through; 0 if there is none. They are counted after all others.
    pub shared_neurons: usize,
    pub weights: ExpertWeighting,
    /// What the gate and the other input of a neuron go through, in place of the architecture's activation.
    pub clamped_gate: Option<ClampedGate>,
}

/// The weights of the chosen experts, from the router's logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertWeighting {
    /// Their softmax over the chosen experts.
    OfChosen,
    /// The chosen experts' shares in the softmax over all experts.
    OfAll,
}

/// g · sigmoid(α g) · (x + 1), where g = min(gate, limit), and x is cut to ± limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClampedGate {
    pub alpha: f32,
    pub limit: f32,
}

impl Experts {
    /// Neurons of a layer.
    pub fn all_neurons(&self) -> usize {
        self.count * self.neurons + self.shared_neurons
    }

    /// Neurons of a layer that are computed at a position.
    pub fn active_neurons(&self) -> usize {
        self.chosen * self.neurons + self.shared_neurons
    }

    /// The expert of a neuron of the layer, and which of that expert's it is. The shared expert comes after the others.
    pub fn of_neuron(&self, neuron: usize) -> (usize, usize) {
        let expert = (neuron / self.neurons).min(self.count);
        (expert, neuron - expert * self.neurons)
    }
}

/// The weights of a block's MLP.
pub enum MlpWeights {
    Dense(Box<Mlp>),
    /// One whose activation has learned numbers.
    Xielu(Box<Mlp>, Xielu),
    Experts(Box<ExpertWeights>),
}

/// xIELU (arXiv 2411.13010): α_p x² + β x where x > 0, else α_n (exp(min(x, ε)) − 1 − x) + β x.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Xielu {
    pub alpha_p: f32,
    pub alpha_n: f32,
    pub beta: f32,
    pub epsilon: f32,
}

/// An MLP, or one expert.
pub struct Mlp {
    /// \[d_model, neurons\]
    pub gate: Option<Linear>,
    /// \[d_model, neurons\]
    pub up: Linear,
    /// \[neurons, d_model\]
    pub down: Linear,
}

pub struct ExpertWeights {
    /// \[d_model, experts\]
    pub router: Linear,
    pub experts: Vec<Mlp>,
    pub shared: Option<SharedExpert>,
}

/// The expert that every position goes through.
pub struct SharedExpert {
    pub mlp: Mlp,
    /// What it writes is multiplied by the sigmoid of this projection, \[d_model, 1\].
    pub gate: Option<Linear>,
}

impl From<Mlp> for MlpWeights {
    fn from(mlp: Mlp) -> Self {
        Self::Dense(Box::new(mlp))
    }
}

impl MlpWeights {
    /// The one MLP, or all experts, the shared one last.
    pub fn each_mut(&mut self) -> Vec<&mut Mlp> {
        match self {
            Self::Dense(mlp) | Self::Xielu(mlp, _) => vec![mlp],
            Self::Experts(of) => {
                of.experts.iter_mut().chain(of.shared.as_mut().map(|shared| &mut shared.mlp)).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neurons_are_counted_expert_by_expert() {
        let experts = Experts {
            count: 3,
            chosen: 2,
            neurons: 5,
            shared_neurons: 7,
            weights: ExpertWeighting::OfAll,
            clamped_gate: None,
        };
        assert_eq!((experts.all_neurons(), experts.active_neurons()), (22, 17));
        assert_eq!(
            [0, 4, 5, 14, 15, 21].map(|n| experts.of_neuron(n)),
            [(0, 0), (0, 4), (1, 0), (2, 4), (3, 0), (3, 6)]
        );
    }
}
