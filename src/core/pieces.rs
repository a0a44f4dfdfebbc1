//! What a measurement ablates and which tables it fills. A run grows by pieces: [`Coverage`] is what the finished ones
//! hold, and [`Coverage::missing`] what a request still needs.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::additions;
pub use crate::additions::Additions;
use crate::components::{Ablatable, Component, Hold};
use crate::config::{Config, Kind};

/// A component, what replaces its output, and what is held meanwhile. They sort as the rows of `ablations` do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ablation {
    pub kind: Kind,
    pub hold: Hold,
    pub component: Ablatable,
}

impl Ablation {
    fn key(&self) -> (Kind, String, Ablatable) {
        (self.kind, self.hold.name(), self.component)
    }

    /// Whether neurons are measured in such a run.
    pub fn measures_neurons(&self) -> bool {
        self.hold == Hold::None && self.component.component == Component::Head
    }
}

impl Ord for Ablation {
    fn cmp(&self, other: &Self) -> Ordering {
        match self.hold == other.hold {
            true => (self.kind, self.component).cmp(&(other.kind, other.component)),
            false => self.key().cmp(&other.key()),
        }
    }
}

impl PartialOrd for Ablation {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Which tables the ablated runs fill.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outputs {
    /// `ablations`, `component_repairs` and `repair_graph`.
    pub effects: bool,
    /// `distributions`.
    pub distribution: bool,
    /// Layers whose neurons are measured on the top tokens of ablated heads: `neuron_repairs`, `neuron_totals` and
    /// `neuron_curves`.
    pub neuron_layers: BTreeSet<usize>,
}

impl Outputs {
    fn is_empty(&self) -> bool {
        !self.effects && !self.distribution && self.neuron_layers.is_empty()
    }

    /// Those that an ablation can have.
    fn of(&self, ablation: &Ablation) -> Outputs {
        let neuron_layers = if ablation.measures_neurons() { self.neuron_layers.clone() } else { BTreeSet::new() };
        Outputs { neuron_layers, ..self.clone() }
    }

    fn add(&mut self, more: Outputs) {
        self.effects |= more.effects;
        self.distribution |= more.distribution;
        self.neuron_layers.extend(more.neuron_layers);
    }

    fn without(&self, have: &Outputs) -> Outputs {
        Outputs {
            effects: self.effects && !have.effects,
            distribution: self.distribution && !have.distribution,
            neuron_layers: self.neuron_layers.difference(&have.neuron_layers).copied().collect(),
        }
    }
}

/// A part of a measurement that is computed, and becomes valid, as a whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// Sorted, each once.
    ablations: Vec<Ablation>,
    /// Those of the ablations and the heads of the additions, sorted.
    components: Vec<Ablatable>,
    pub outputs: Outputs,
    pub additions: Option<Additions>,
}

impl Piece {
    pub fn new(ablations: BTreeSet<Ablation>, outputs: Outputs, additions: Option<Additions>) -> Result<Self> {
        let mut components: BTreeSet<Ablatable> = ablations.iter().map(|a| a.component).collect();
        for head in additions.iter().flat_map(|a| &a.heads) {
            components.insert(Ablatable::parse(head)?);
        }
        let (ablations, components) = (ablations.into_iter().collect(), components.into_iter().collect());
        Ok(Self { ablations, components, outputs, additions })
    }

    /// Everything that a configuration asks for, in a model of that many layers and heads.
    ///
    /// # Errors
    /// If the configuration names something that the model does not have.
    pub fn of(config: &Config, layers: usize, heads: usize) -> Result<Self> {
        let (components, holds) = (config.ablation.components(layers, heads)?, config.ablation.holds(layers, heads)?);
        let neuron_layers: BTreeSet<usize> = config.neurons.layers.layers("neurons.layers", layers)?;
        let mut ablations = BTreeSet::new();
        for &kind in &config.ablation.kinds {
            for &hold in &holds {
                ablations.extend(components.iter().map(|&component| Ablation { kind, hold, component }));
            }
        }
        let outputs = Outputs { effects: true, distribution: config.ablation.distribution, neuron_layers };
        Self::new(ablations, outputs, additions_of(config, &components))
    }

    pub fn ablations(&self) -> &[Ablation] {
        &self.ablations
    }

    pub fn is_empty(&self) -> bool {
        self.ablations.is_empty() && self.additions.is_none()
    }

    pub fn components(&self) -> &[Ablatable] {
        &self.components
    }

    /// Layers whose neurons are measured: none if no ablation measures any.
    pub fn neuron_layers(&self) -> Vec<usize> {
        match self.ablations.iter().any(Ablation::measures_neurons) {
            true => self.outputs.neuron_layers.iter().copied().collect(),
            false => vec![],
        }
    }

    /// The kinds, in the order of the tables.
    pub fn kinds(&self) -> Vec<Kind> {
        BTreeSet::from_iter(self.ablations.iter().map(|a| a.kind)).into_iter().collect()
    }

    /// The holds, in the order of the tables.
    pub fn holds(&self) -> Vec<Hold> {
        let holds = self.ablations.iter().map(|a| (a.hold.name(), a.hold));
        BTreeMap::from_iter(holds).into_values().collect()
    }
}

fn additions_of(config: &Config, components: &[Ablatable]) -> Option<Additions> {
    let heads = components.iter().filter(|c| c.component == Component::Head).map(Ablatable::name).collect();
    let prompts = config.iterative.prompts;
    (prompts > 0).then(|| Additions::on(prompts, config.iterative.multiples.clone(), heads))
}

/// What finished pieces have measured.
#[derive(Debug, Clone, Default)]
pub struct Coverage {
    ablations: BTreeMap<Ablation, Outputs>,
    additions: Vec<Additions>,
}

impl Coverage {
    pub fn of<'a>(pieces: impl IntoIterator<Item = &'a Piece>) -> Self {
        let mut coverage = Self::default();
        for piece in pieces {
            for ablation in &piece.ablations {
                coverage.ablations.entry(*ablation).or_default().add(piece.outputs.of(ablation));
            }
            coverage.additions.extend(piece.additions.clone());
        }
        coverage
    }

    pub fn ablations(&self) -> &BTreeMap<Ablation, Outputs> {
        &self.ablations
    }

    pub fn additions(&self) -> &[Additions] {
        &self.additions
    }

    /// Whether all of a piece's ablations and additions are here.
    pub fn covers(&self, piece: &Piece) -> bool {
        piece.ablations.iter().all(|a| self.has(a, &piece.outputs)) && self.missing_additions(piece).is_empty()
    }

    /// Whether an ablation has all of those outputs that it can have.
    pub fn has(&self, ablation: &Ablation, outputs: &Outputs) -> bool {
        self.ablations.get(ablation).is_some_and(|have| outputs.of(ablation).without(have).is_empty())
    }

    /// Whether an ablation has some of those outputs and not all.
    fn has_some(&self, ablation: &Ablation, outputs: &Outputs) -> bool {
        let wanted = outputs.of(ablation);
        let lacks = self.ablations.get(ablation).map(|have| wanted.without(have));
        lacks.is_some_and(|lacks| !lacks.is_empty() && lacks != wanted)
    }

    /// Whether a piece that was begun for an earlier request can be finished for this one: nothing of it is unwanted, and
    /// what other pieces have of it meanwhile is whole ablations.
    pub fn can_finish(&self, begun: &Piece, wanted: &Piece) -> bool {
        let wanted = Coverage::of([wanted]);
        let is_wanted = |a: &Ablation| self.has(a, &begun.outputs) || wanted.has(a, &begun.outputs);
        let is_split = |a: &Ablation| self.has_some(a, &begun.outputs);
        let additions = begun.additions.as_ref().is_none_or(|additions| {
            let with_wanted: Vec<Additions> = self.additions.iter().chain(&wanted.additions).cloned().collect();
            additions::missing(&with_wanted, additions).is_empty()
                && additions::missing(&self.additions, additions) == std::slice::from_ref(additions)
                && additions::missing(&self.additions, &additions.before()).is_empty()
        });
        additions && begun.ablations.iter().all(|a| is_wanted(a) && !is_split(a)) && !self.covers(begun)
    }

    fn missing_additions(&self, wanted: &Piece) -> Vec<Additions> {
        wanted.additions.as_ref().map(|wanted| additions::missing(&self.additions, wanted)).unwrap_or_default()
    }

    /// What is wanted and not here, as few pieces as possible: ablations that lack the same outputs are one.
    pub fn missing(&self, wanted: &Piece) -> Result<Vec<Piece>> {
        let mut groups: BTreeMap<Outputs, BTreeSet<Ablation>> = BTreeMap::new();
        // An ablation without neurons goes with those that lack the same of the rest.
        let mut others: Vec<(Outputs, Ablation)> = Vec::new();
        for ablation in &wanted.ablations {
            let none = Outputs::default();
            let lacks = wanted.outputs.of(ablation).without(self.ablations.get(ablation).unwrap_or(&none));
            match (lacks.is_empty(), ablation.measures_neurons()) {
                (true, _) => {}
                (false, true) => {
                    groups.entry(lacks).or_default().insert(*ablation);
                }
                (false, false) => others.push((lacks, *ablation)),
            }
        }
        for (lacks, ablation) in others {
            let same = |of: &&Outputs| (of.effects, of.distribution) == (lacks.effects, lacks.distribution);
            let group = groups.keys().find(same).cloned().unwrap_or(lacks);
            groups.entry(group).or_default().insert(ablation);
        }
        let mut pieces: Vec<Piece> = Vec::new();
        // Those with effects first: a reader of a half-finished run has the main table then.
        for (outputs, ablations) in groups.into_iter().rev() {
            pieces.push(Piece::new(ablations, outputs, None)?);
        }
        for additions in self.missing_additions(wanted) {
            pieces.push(Piece::new(BTreeSet::new(), Outputs::default(), Some(additions))?);
        }
        Ok(pieces)
    }

    /// One line for each kind and hold: `resample: 90 heads (layers 20 to 29), 2 MLPs (layer 3)`; then the additions.
    pub fn lines(&self) -> Vec<String> {
        let mut groups: BTreeMap<(Kind, String), Vec<Ablatable>> = BTreeMap::new();
        for (ablation, outputs) in &self.ablations {
            if outputs.effects {
                groups.entry((ablation.kind, ablation.hold.name())).or_default().push(ablation.component);
            }
        }
        let line = |((kind, hold), components): (&(Kind, String), &Vec<Ablatable>)| {
            let held = if hold == "none" { String::new() } else { format!(", {hold} held") };
            format!("{}{held}: {}", kind.name(), counted(components))
        };
        groups.iter().map(line).chain(additions::lines(&self.additions)).collect()
    }
}

/// `90 heads (layers 20 to 29), 2 MLPs (layers 3 and 7)`
pub fn counted(components: &[Ablatable]) -> String {
    let sorts = [
        (Component::Head, "head", "heads"),
        (Component::Mlp, "MLP", "MLPs"),
        (Component::Attention, "attention layer", "attention layers"),
        (Component::Block, "block", "blocks"),
    ];
    let of_sort = |&(sort, one, many): &(Component, &str, &str)| {
        let layers: Vec<usize> = components.iter().filter(|c| c.component == sort).map(|c| c.layer).collect();
        let (first, last) = (*layers.iter().min()?, *layers.iter().max()?);
        let place = if first == last { format!("layer {first}") } else { format!("layers {first} to {last}") };
        Some(format!("{} {} ({place})", layers.len(), if layers.len() == 1 { one } else { many }))
    };
    sorts.iter().filter_map(of_sort).collect::<Vec<_>>().join(", ")
}

/// A piece as a record has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PieceText {
    ablations: Vec<AblationText>,
    outputs: Outputs,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    additions: Option<Additions>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AblationText {
    ablation: Kind,
    hold: String,
    components: Vec<String>,
}

impl From<&Piece> for PieceText {
    fn from(piece: &Piece) -> Self {
        let mut ablations: Vec<AblationText> = Vec::new();
        for a in &piece.ablations {
            let (hold, name) = (a.hold.name(), a.component.name());
            match ablations.last_mut().filter(|last| last.ablation == a.kind && last.hold == hold) {
                Some(last) => last.components.push(name),
                None => ablations.push(AblationText { ablation: a.kind, hold, components: vec![name] }),
            }
        }
        Self { ablations, outputs: piece.outputs.clone(), additions: piece.additions.clone() }
    }
}

impl TryFrom<&PieceText> for Piece {
    type Error = anyhow::Error;

    fn try_from(text: &PieceText) -> Result<Self> {
        let mut ablations = BTreeSet::new();
        for AblationText { ablation, hold, components } in &text.ablations {
            let hold = Hold::parse(hold, usize::MAX, usize::MAX).context("in the record of a piece")?;
            for name in components {
                ablations.insert(Ablation { kind: *ablation, hold, component: Ablatable::parse(name)? });
            }
        }
        Piece::new(ablations, text.outputs.clone(), text.additions.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(settings: &[&str]) -> Piece {
        let settings: Vec<String> = settings.iter().map(|s| s.to_string()).collect();
        Piece::of(&Config::load(None, &settings).unwrap(), 4, 2).unwrap()
    }

    fn names(piece: &Piece) -> Vec<String> {
        let name = |a: &Ablation| format!("{} {} {}", a.kind.name(), a.hold.name(), a.component.name());
        piece.ablations.iter().map(name).collect()
    }

    #[test]
    fn what_is_missing_is_what_nobody_measured() {
        let heads = "ablation.heads=[\"L1H0\", \"L2H1\"]";
        let first = piece(&[heads]);
        assert!(Coverage::default().missing(&first).unwrap() == std::slice::from_ref(&first));
        let have = Coverage::of([&first]);
        assert!(have.covers(&first) && have.missing(&piece(&["ablation.heads=[\"L1H0\"]"])).unwrap().is_empty());

        // One head and one kind more: a piece that is no rectangle.
        let more = piece(&["ablation.heads=[\"L1\", \"L2H1\"]", "ablation.kinds=[\"resample\", \"zero\"]"]);
        let missing = have.missing(&more).unwrap();
        assert_eq!(missing.len(), 1);
        let expected = ["resample none L1H1", "zero none L1H0", "zero none L1H1", "zero none L2H1"];
        assert_eq!(names(&missing[0]), expected);
        assert!(Coverage::of([&first, &missing[0]]).covers(&more));
    }

    #[test]
    fn outputs_are_asked_for_only_where_they_lack() {
        let heads = "ablation.heads=[\"L1H0\"]";
        let have = Coverage::of([&piece(&[heads, "neurons.layers=[\"L3\"]"])]);
        let more =
            piece(&[heads, "ablation.mlps=[\"L0\"]", "neurons.layers=[\"L2-3\"]", "ablation.hold=[\"erasers\"]"]);
        let missing = have.missing(&more).unwrap();
        let all: Vec<(bool, Vec<usize>, Vec<String>)> =
            missing.iter().map(|p| (p.outputs.effects, p.neuron_layers(), names(p))).collect();
        let rest = ["resample erasers L1H0", "resample erasers MLP0", "resample none MLP0"];
        let expected =
            [(true, vec![], rest.map(String::from).to_vec()), (false, vec![2], vec!["resample none L1H0".to_string()])];
        assert_eq!(all, expected);
        // Heads and MLPs asked for together are one piece.
        assert_eq!(Coverage::default().missing(&more).unwrap().len(), 1);
        let missing = have.missing(&piece(&[heads, "ablation.distribution=true", "neurons.layers=[]"])).unwrap();
        assert!(missing.len() == 1 && missing[0].outputs.distribution && !missing[0].outputs.effects);
    }

    #[test]
    fn additions_that_are_missing_are_pieces() {
        let of = |prompts: usize, multiples: &str| {
            piece(&[
                &format!("iterative.prompts={prompts}"),
                &format!("iterative.multiples={multiples}"),
                "ablation.heads=[\"L1H0\"]",
            ])
        };
        let have = Coverage::of([&of(4, "[1, 3]")]);
        assert!(have.missing(&of(2, "[3]")).unwrap().is_empty());
        let missing = have.missing(&of(2, "[3, 5]")).unwrap();
        assert!(missing.len() == 1 && missing[0].ablations().is_empty());
        assert_eq!(missing[0].additions.as_ref().unwrap().multiples, [5.0]);

        // A begun piece is finished if all of it is wanted and nothing of it is there.
        let begun = &missing[0];
        assert!(have.can_finish(begun, &of(4, "[1, 3, 5]")));
        assert!(!have.can_finish(begun, &of(4, "[1, 3]")), "nobody asks for it");
        assert!(
            !Coverage::default()
                .can_finish(&Coverage::of([&of(1, "[5]")]).missing(&of(2, "[5]")).unwrap()[0], &of(2, "[5]"))
        );
        assert!(!Coverage::of([&of(4, "[1, 3]"), &of(1, "[5]")]).can_finish(begun, &of(4, "[5]")), "a part is there");
    }

    #[test]
    fn a_record_gives_the_piece_back() {
        let piece = piece(&[
            "ablation.heads=[\"L1\"]",
            "ablation.mlps=[\"L0\"]",
            "ablation.blocks=[\"L2\"]",
            "ablation.attention=[\"L3\"]",
            "ablation.hold=[\"erasers\", \"L3H1\", \"MLP2\"]",
            "ablation.kinds=[\"mean\", \"project_out\"]",
            "iterative.prompts=3",
        ]);
        let text = serde_json::to_string(&PieceText::from(&piece)).unwrap();
        let read: PieceText = serde_json::from_str(&text).unwrap();
        assert_eq!(Piece::try_from(&read).unwrap(), piece);
        let wrong = text.replace("L1H0", "../x");
        assert!(Piece::try_from(&serde_json::from_str::<PieceText>(&wrong).unwrap()).is_err());
    }

    #[test]
    fn coverage_is_said_in_words() {
        let have = Coverage::of([
            &piece(&["ablation.heads=[\"L1-2\"]", "ablation.mlps=[\"L0\"]"]),
            &piece(&["ablation.heads=[\"L3H0\"]", "ablation.kinds=zero", "ablation.hold=[\"erasers\"]"]),
        ]);
        let expected = [
            "resample: 4 heads (layers 1 to 2), 1 MLP (layer 0)",
            "zero, erasers held: 1 head (layer 3)",
            "zero: 1 head (layer 3)",
        ];
        assert_eq!(have.lines(), expected);
    }
}
