//! Columns that say what was ablated, and what repairs it, in every table about ablations.

use std::iter::repeat_n;

use arrow::array::ArrayRef;
use selfrepair_core::columns;
use selfrepair_core::components::{Ablatable, Component};
use selfrepair_model::Architecture;

use super::plan::Plan;

/// The key of a target, without prompt and position.
pub struct TargetKey {
    ablation: &'static str,
    hold: String,
    component: Ablatable,
    name: String,
}

impl TargetKey {
    pub fn of(plan: &Plan, target: usize) -> Self {
        let (kind, hold, component) = plan.parts(target);
        Self { ablation: kind.name(), hold: hold.name(), component, name: component.name() }
    }

    /// What the components of a layer have in common.
    pub fn layer(&self) -> (&str, &str, Component, usize) {
        (self.ablation, &self.hold, self.component.component, self.component.layer)
    }
}

/// `ablation, strength, hold, hold_value, hold_own_mlp, component, name, layer, head`, a row for each key.
pub fn target_columns<'a>(keys: impl Iterator<Item = &'a TargetKey> + Clone) -> Vec<ArrayRef> {
    let keys = || keys.clone();
    vec![
        columns::texts(keys().map(|k| k.ablation)),
        columns::settings(keys().map(|_| 1.0)),
        columns::texts(keys().map(|k| &k.hold)),
        columns::texts(keys().map(|_| "clean")),
        columns::flags(keys().map(|_| true)),
        columns::texts(keys().map(|k| k.component.component.name())),
        columns::names(keys().map(|k| &k.name)),
        columns::keys(keys().map(|k| k.component.layer)),
        columns::keys_or_null(keys().map(|k| k.component.head)),
    ]
}

/// `repairer, repairer_name, repairer_layer, repairer_head` of heads and MLPs.
pub fn repairer_columns(parts: impl Iterator<Item = (usize, Option<usize>)> + Clone) -> [ArrayRef; 4] {
    let repairers = || parts.clone().map(|(layer, head)| Ablatable::head_or_mlp(layer, head));
    [
        columns::texts(repairers().map(|r| r.component.name())),
        columns::names(repairers().map(|r| r.name())),
        columns::keys(repairers().map(|r| r.layer)),
        columns::keys_or_null(repairers().map(|r| r.head)),
    ]
}

/// `neuron_layer, subset, expert` at top tokens.
pub fn expert_columns(rows: impl ExactSizeIterator<Item = (usize, Option<usize>)> + Clone) -> [ArrayRef; 3] {
    [
        columns::keys(rows.clone().map(|(layer, _)| layer)),
        columns::texts(repeat_n("top", rows.len())),
        columns::keys_or_null(rows.map(|(_, expert)| expert)),
    ]
}

/// The expert of a neuron of a layer, if there are experts, and which of its neurons it is.
pub fn of_neuron(a: &Architecture, neuron: usize) -> (Option<usize>, usize) {
    match &a.experts {
        None => (None, neuron),
        Some(experts) => {
            let (expert, neuron) = experts.of_neuron(neuron);
            (Some(expert), neuron)
        }
    }
}
