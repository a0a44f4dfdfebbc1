//! The list of ablations, the same for every prompt.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};

use super::top::TopTokens;
use super::work::SharedWork;
use crate::MeasureContext;
use crate::repair::Slots;
use crate::trace::Means;
use selfrepair_core::components::{Ablatable, Component, Hold};
use selfrepair_core::config::Kind;
use selfrepair_core::pieces::{Ablation, Outputs};
use selfrepair_core::prompts::Prompts;
use selfrepair_engine::{Keep, Needs, Place};
use selfrepair_model::Architecture;

pub struct Plan<'a> {
    pub prompts: &'a Prompts,
    /// In the order of the table; a target is a number in this list.
    ablations: &'a [Ablation],
    /// Target of a kind, hold and component, if it is ablated; see [`Plan::cell`].
    targets: Vec<Option<usize>>,
    pub outputs: &'a Outputs,
    pub kinds: Vec<Kind>,
    pub holds: Vec<Hold>,
    pub components: &'a [Ablatable],
    /// Indices of `components` that can share a batch: those of one layer and sort.
    pub groups: BTreeMap<(usize, Component), Vec<usize>>,
    /// `pairings[sample][prompt]`; empty without resample ablation.
    pub pairings: Vec<Vec<usize>>,
    pub means: Option<Means>,
    pub top: TopTokens,
    /// Layers whose neurons are measured.
    pub neuron_layers: Vec<usize>,
    pub top_k: usize,
    /// Of sums, as a multiple of float32's.
    pub tolerance: f64,
    pub slots: Slots,
    pub architecture: &'a Architecture,
}

/// Work that an engine does without another's help: the ablations of some layers and sorts, of prompts of one length.
pub struct Job<'a> {
    pub prompts: Vec<usize>,
    /// Of [`Plan::groups`].
    pub groups: Vec<(usize, Component)>,
    /// Their part of the work of all groups.
    pub share: f64,
    /// Where others do the rest.
    pub shared: Option<Arc<SharedWork<'a>>>,
}

/// One ablation of a component: a row of a batch.
#[derive(Clone, Copy)]
pub struct Item {
    /// Index in `Plan::kinds`.
    pub kind: usize,
    /// Which pairing, for resample.
    pub sample: usize,
    /// Index in `Plan::components`.
    pub component: usize,
}

impl<'a> Plan<'a> {
    pub fn new(
        context: &'a MeasureContext,
        prompts: &'a Prompts,
        pairings: Vec<Vec<usize>>,
        means: Option<Means>,
        top: TopTokens,
    ) -> Result<Self> {
        let (a, piece) = (context.architecture, context.piece);
        let mut groups: BTreeMap<(usize, Component), Vec<usize>> = BTreeMap::new();
        for (i, c) in piece.components().iter().enumerate() {
            groups.entry((c.layer, c.component)).or_default().push(i);
        }
        let mut plan = Self {
            prompts,
            ablations: piece.ablations(),
            targets: vec![],
            outputs: &piece.outputs,
            kinds: piece.kinds(),
            holds: piece.holds(),
            components: piece.components(),
            groups,
            pairings,
            means,
            top,
            neuron_layers: piece.neuron_layers(),
            top_k: context.config.neurons.top_k.min(a.d_mlp),
            tolerance: context.config.runtime.precision.tolerance(),
            slots: Slots { layers: a.layers, heads: a.heads },
            architecture: a,
        };
        plan.number_targets()?;
        Ok(plan)
    }

    fn number_targets(&mut self) -> Result<()> {
        let mut targets = vec![None; self.kinds.len() * self.holds.len() * self.components.len()];
        for (target, ablation) in self.ablations.iter().enumerate() {
            let kind = self.kinds.iter().position(|k| *k == ablation.kind);
            let hold = self.holds.iter().position(|h| *h == ablation.hold);
            let component = self.components.binary_search(&ablation.component).ok();
            let parts = kind.zip(hold).zip(component).context("an ablation that is not in its piece")?;
            let ((kind, hold), component) = parts;
            targets[self.cell(kind, hold, component)] = Some(target);
        }
        self.targets = targets;
        Ok(())
    }

    pub fn needs(&self) -> Needs {
        Needs {
            unembed: false,
            ablate: true,
            hold: self.has_holds(),
            divergence: self.outputs.distribution,
            iterate: false,
            neurons: self.neuron_layers.clone(),
            first_readers: self.first_readers(),
            rows: self.prompts.tokens(),
            prompt_len: self.prompts.longest(),
            partners: self.pairings.len(),
        }
    }

    /// The layer that reads first what heads of `layer` write.
    pub fn first_reader(&self, layer: usize) -> usize {
        if self.own_mlp_reacts() { layer } else { layer + 1 }
    }

    /// Layers that read ablated heads first, where they can do so by differences: projections along u are none of z.
    fn first_readers(&self) -> Vec<usize> {
        let is_of_z = |kind: &Kind| matches!(kind, Kind::Resample | Kind::Mean | Kind::Zero);
        if !self.kinds.iter().any(is_of_z) || !self.architecture.reads_by_difference() {
            return vec![];
        }
        let heads = self.groups.keys().filter(|(_, component)| *component == Component::Head);
        let readers = heads.map(|&(layer, _)| self.first_reader(layer));
        readers.filter(|&layer| layer < self.architecture.layers).collect()
    }

    /// Necessary operations of ablating one prompt.
    pub fn flops_of(&self, prompt: usize) -> f64 {
        let of = |a: &Ablation| self.architecture.suffix_flops(&a.component) * self.samples(a.kind) as f64;
        self.ablations.iter().map(of).sum::<f64>() * self.prompts.needed(prompt).len() as f64
    }

    /// All ablations of some prompts.
    pub fn whole(&self, prompts: &[usize]) -> Job<'a> {
        let groups = self.groups.keys().copied().collect();
        Job { prompts: prompts.to_vec(), groups, share: 1.0, shared: None }
    }

    /// As [`Plan::whole`], for several engines: in jobs of less and less work, which share the clean pass.
    pub fn divided(&self, prompts: &[usize]) -> Vec<Job<'a>> {
        let of = |group| self.groups[group].iter().map(|&c| self.architecture.suffix_flops(&self.components[c])).sum();
        let work: Vec<((usize, Component), f64)> = self.groups.keys().map(|group| (*group, of(group))).collect();
        let runs = tapered(&work);
        let shared = Arc::new(SharedWork::of_jobs(runs.len()));
        let job = |(groups, share)| Job { prompts: prompts.to_vec(), groups, share, shared: Some(shared.clone()) };
        runs.into_iter().map(job).collect()
    }

    /// The rows' targets of some groups.
    pub fn targets_of(&self, groups: &[(usize, Component)]) -> Vec<usize> {
        let of = |target: &usize| {
            let component = self.parts(*target).2;
            groups.contains(&(component.layer, component.component))
        };
        (0..self.targets()).filter(of).collect()
    }

    pub fn flops(&self) -> f64 {
        (0..self.prompts.count()).map(|p| self.flops_of(p)).sum()
    }

    /// Prompts in one file: about 10¹³ operations, a minute or so of two cores, which is what a kill can lose. It
    /// depends on the configuration only, so that the same one gives the same files on every machine.
    pub fn prompts_in_shard(&self) -> usize {
        let mean = self.flops() / self.prompts.count() as f64;
        ((1e13 / mean.max(1.0)) as usize).clamp(1, 64)
    }

    /// Runs of a prompt that are averaged.
    fn samples(&self, kind: Kind) -> usize {
        if kind == Kind::Resample { self.pairings.len() } else { 1 }
    }

    /// The ablations of some components under one hold.
    pub fn items(&self, hold: usize, components: &[usize]) -> Vec<Item> {
        let kinds = self.kinds.iter().enumerate();
        let kinds = kinds.flat_map(|(i, &kind)| (0..self.samples(kind)).map(move |sample| (i, sample)));
        let items =
            kinds.flat_map(|(kind, sample)| components.iter().map(move |&component| Item { kind, sample, component }));
        items.filter(|item| self.target(item.kind, hold, item.component).is_some()).collect()
    }

    /// The most runs of a prompt that one group has.
    pub fn most_items(&self) -> usize {
        let of = |members| (0..self.holds.len()).map(|hold| self.items(hold, members).len()).max();
        self.groups.values().filter_map(|members| of(members)).max().unwrap_or(1)
    }

    /// What one measurement counts in a mean over resample samples.
    pub fn weight(&self, item: &Item) -> f64 {
        match self.kinds[item.kind] {
            Kind::Resample => 1.0 / self.pairings.len() as f64,
            _ => 1.0,
        }
    }

    fn cell(&self, kind: usize, hold: usize, component: usize) -> usize {
        (kind * self.holds.len() + hold) * self.components.len() + component
    }

    /// The number of a kind, hold and component, if it is ablated. They are numbered in the order of the table.
    pub fn target(&self, kind: usize, hold: usize, component: usize) -> Option<usize> {
        self.targets[self.cell(kind, hold, component)]
    }

    pub fn targets(&self) -> usize {
        self.ablations.len()
    }

    /// The inverse of [`Plan::target`].
    pub fn parts(&self, target: usize) -> (Kind, Hold, Ablatable) {
        let Ablation { kind, hold, component } = self.ablations[target];
        (kind, hold, component)
    }

    /// Whether something is held in some runs.
    fn has_holds(&self) -> bool {
        self.holds.iter().any(|hold| *hold != Hold::None)
    }

    /// Whether a layer's MLP reads what its attention writes.
    pub fn own_mlp_reacts(&self) -> bool {
        !self.architecture.parallel
    }

    /// Whether neurons are measured in this kind of run.
    pub fn measures_neurons(&self, hold: Hold, component: &Ablatable) -> bool {
        !self.neuron_layers.is_empty() && hold == Hold::None && component.component == Component::Head
    }

    /// What the clean pass of the ablated prompts must keep.
    pub fn keep(&self) -> Vec<Keep> {
        let mut keep = self.keep_of_partners();
        for &(layer, component) in self.groups.keys() {
            if component == Component::Head && self.architecture.write_norms {
                let k = &mut keep[layer];
                (k.attention_linear, k.attention_out) = (true, true);
            }
            match place(self.architecture, component) {
                Place::Mid => keep[layer].mid = true,
                Place::Post => keep[layer].residual_post = true,
            }
        }
        for &layer in &self.neuron_layers {
            keep[layer].post = true;
        }
        // Of what is ablated, and of all that can react.
        let first = self.groups.keys().next().map_or(self.architecture.layers, |&(layer, _)| layer);
        keep.iter_mut().skip(first).for_each(|k| k.directions = true);
        if self.has_holds() {
            for k in &mut keep {
                (k.z, k.mlp_out) = (true, true);
            }
        }
        keep
    }

    /// What prompts that lend their activations must keep.
    pub fn keep_of_partners(&self) -> Vec<Keep> {
        let mut keep = vec![Keep::default(); self.architecture.layers];
        for &(layer, component) in self.groups.keys() {
            let k = &mut keep[layer];
            match component {
                Component::Head => k.z = true,
                Component::Attention => k.attention_out = true,
                Component::Mlp => k.mlp_out = true,
                Component::Block => (k.attention_out, k.mlp_out) = (true, true),
            }
        }
        keep
    }
}

/// Items in order, each with its work, in runs of a third of what is left each, and their parts of all work.
fn tapered<T: Copy>(items: &[(T, f64)]) -> Vec<(Vec<T>, f64)> {
    /// Of all work, in one run.
    const LEAST: f64 = 1.0 / 32.0;
    let all: f64 = items.iter().map(|item| item.1).sum();
    // Where nothing is to be done, every run is all of it.
    let share = |work: f64| if all > 0.0 { work / all } else { 1.0 };
    let mut left = all;
    let (mut runs, mut run, mut work) = (vec![], vec![], 0.0);
    for (item, of_item) in items {
        run.push(*item);
        work += of_item;
        if work >= (left / 3.0).max(LEAST * all) {
            left -= work;
            runs.push((std::mem::take(&mut run), share(work)));
            work = 0.0;
        }
    }
    if !run.is_empty() {
        runs.push((run, share(work)));
    }
    runs
}

/// Where the suffix of an ablated component starts.
pub fn place(a: &Architecture, component: Component) -> Place {
    match component {
        Component::Head | Component::Attention if !a.parallel => Place::Mid,
        _ => Place::Post,
    }
}

#[cfg(test)]
mod tests {
    use super::tapered;

    #[test]
    fn work_is_divided_in_order_and_whole_with_little_at_the_end() {
        // Heads of 30 layers: the work falls from layer to layer.
        let items: Vec<(usize, f64)> = (0..30).map(|layer| (layer, (30 - layer) as f64)).collect();
        let runs = tapered(&items);
        let layers: Vec<usize> = runs.iter().flat_map(|(run, _)| run.clone()).collect();
        assert_eq!(layers, (0..30).collect::<Vec<_>>());
        let shares: Vec<f64> = runs.iter().map(|(_, share)| *share).collect();
        assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{shares:?}");
        // A third, as near as whole layers come.
        assert!((1.0 / 3.0..0.4).contains(&shares[0]), "{shares:?}");
        assert!(*shares.last().unwrap() < 0.06 && (6..=10).contains(&runs.len()), "{shares:?}");
        assert_eq!(tapered(&items[..1]), [(vec![0], 1.0)]);
        // Work that is none is still done.
        assert_eq!(tapered(&[("a", 0.0), ("b", 0.0)]), [(vec!["a"], 1.0), (vec!["b"], 1.0)]);
    }
}
