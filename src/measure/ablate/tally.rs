//! Collects the changes of later components and neurons over the runs of one group of components.
//!
//! Resample samples are averaged as effects, so ranks and squares are computed only when all samples are in.

use anyhow::{Context, Result};
use ort::value::DynValue;

use super::key::of_neuron;
use super::plan::{Item, Plan};
use super::shard::{NeuronRow, NeuronTotal, Place, RepairRow, Shard};
use super::sums::Sums;
use selfrepair_engine::runtime::view;
use selfrepair_engine::{Ablated, CleanBatch, Directions, Engine, Posts};

/// Repairing components kept of each top token.
const REPAIRERS: usize = 10;

/// Clean neurons of the measured layers, and their directions.
pub struct NeuronSource {
    /// (layer, w = W_out u [P, S, M]).
    directions: Vec<(usize, DynValue)>,
}

impl NeuronSource {
    pub fn new(engine: &mut Engine, plan: &Plan, clean: &CleanBatch, directions: &Directions) -> Result<Self> {
        debug_assert!(plan.neuron_layers.iter().all(|&l| clean.layers[l].post.is_some()));
        let of = |&l: &usize| Ok((l, engine.neuron_directions(l, directions)?));
        Ok(Self { directions: plan.neuron_layers.iter().map(of).collect::<Result<_>>()? })
    }

    /// (activation, w) of the neurons of the n-th measured layer at row `i` of the clean batch.
    fn row<'a>(&'a self, clean: &'a CleanBatch, n: usize, i: usize) -> Result<(&'a [f32], &'a [f32])> {
        let (layer, w) = &self.directions[n];
        let post = view(&posts(clean, *layer)?.neurons)?;
        let neurons = post.len() / (clean.effects.prompts * clean.effects.positions);
        Ok((&post[i * neurons..(i + 1) * neurons], &view(w)?[i * neurons..(i + 1) * neurons]))
    }
}

fn posts(clean: &CleanBatch, layer: usize) -> Result<&Posts> {
    clean.layers[layer].post.as_ref().context("the clean pass did not keep the neurons")
}

/// Changes at one top token, in logits.
struct TopChange {
    position: usize,
    rank: usize,
    /// Of the ablated component, clean.
    direct_effect: f64,
    /// By component.
    changes: Vec<f64>,
    /// By measured layer, a number a neuron; empty if the MLP does not run again.
    neurons: Vec<Vec<f64>>,
    /// Of what experts' biases write, by measured layer.
    expert_biases: Vec<f64>,
}

/// What one component's ablation changed in one prompt.
struct Cell {
    /// Sums over all measured tokens, by component.
    all: Vec<f64>,
    tops: Vec<TopChange>,
}

pub struct Tally<'a> {
    hold: usize,
    members: &'a [usize],
    batch: &'a [usize],
    kinds: usize,
    /// [kind][member][prompt of the batch]
    cells: Vec<Cell>,
}

impl<'a> Tally<'a> {
    /// `members` are the components of the group, `batch` the prompts.
    pub fn new(plan: &Plan, hold: usize, members: &'a [usize], batch: &'a [usize]) -> Self {
        let slots = plan.slots.count();
        let kinds = plan.kinds.len();
        let cell = |component: usize, prompt: usize| {
            let top = |(position, rank)| TopChange {
                position,
                rank,
                direct_effect: 0.0,
                changes: vec![0.0; slots],
                neurons: vec![vec![]; plan.neuron_layers.len()],
                expert_biases: vec![0.0; plan.neuron_layers.len()],
            };
            Cell { all: vec![0.0; slots], tops: plan.top.in_prompt(component, prompt).map(top).collect() }
        };
        let cells = (0..kinds).flat_map(|_| members.iter().flat_map(|&c| batch.iter().map(move |&p| cell(c, p))));
        Self { hold, members, batch, kinds, cells: cells.collect() }
    }

    fn cell(&mut self, item: Item, p: usize) -> &mut Cell {
        let member = self.members.partition_point(|&c| c < item.component);
        &mut self.cells[(item.kind * self.members.len() + member) * self.batch.len() + p]
    }

    /// Adds one token: the changes of all components, by slot.
    pub fn add(&mut self, item: Item, p: usize, position: usize, direct_effect: f64, changes: &[f64], weight: f64) {
        let cell = self.cell(item, p);
        let add = |sums: &mut [f64]| sums.iter_mut().zip(changes).for_each(|(sum, change)| *sum += weight * change);
        add(&mut cell.all);
        if let Ok(i) = cell.tops.binary_search_by_key(&position, |t| t.position) {
            cell.tops[i].direct_effect = direct_effect;
            add(&mut cell.tops[i].changes);
        }
    }

    /// Adds what neurons changed at the top tokens of run `b`.
    #[allow(clippy::too_many_arguments)]
    pub fn add_neurons(
        &mut self,
        item: Item,
        p: usize,
        b: usize,
        ablated: &Ablated,
        clean: &CleanBatch,
        source: &NeuronSource,
        weight: f64,
    ) -> Result<()> {
        let positions = clean.effects.positions;
        for (layer, post) in &ablated.posts {
            let n = source.directions.iter().position(|(l, _)| l == layer).context("a layer that was not asked for")?;
            let (biases_before, biases_after) = (&posts(clean, *layer)?.expert_biases, &post.expert_biases);
            let post = view(&post.neurons)?;
            for top in &mut self.cell(item, p).tops {
                let (i, j) = (p * positions + top.position, b * positions + top.position);
                let (before, w) = source.row(clean, n, i)?;
                let after = &post[j * before.len()..(j + 1) * before.len()];
                let scale = weight / f64::from(clean.effects.norm_scale[i]);
                if let (Some(before), Some(after)) = (biases_before.get(i), biases_after.get(j)) {
                    top.expert_biases[n] += f64::from(after - before) * scale;
                }
                top.neurons[n].resize(before.len(), 0.0);
                for (m, change) in top.neurons[n].iter_mut().enumerate() {
                    *change += f64::from(after[m] - before[m]) * f64::from(w[m]) * scale;
                }
            }
        }
        Ok(())
    }

    /// Hands everything to the shard, prompt after prompt.
    pub fn finish(self, plan: &Plan, clean: &CleanBatch, source: &NeuronSource, shard: &mut Shard) -> Result<()> {
        let positions = clean.effects.positions;
        let (members, batch) = (self.members, self.batch);
        debug_assert_eq!(self.cells.len(), self.kinds * members.len() * batch.len());
        for (i, cell) in self.cells.into_iter().enumerate() {
            let (p, rest) = (i % batch.len(), i / batch.len());
            let (kind, component) = (rest / members.len(), members[rest % members.len()]);
            let Some(target) = plan.target(kind, self.hold, component) else { continue };
            let tokens = plan.prompts.measured(batch[p]).len();
            shard.sums.add_changes(target, Sums::ALL, tokens, &cell.all);
            let mut top_sums = vec![0.0; cell.all.len()];
            for top in &cell.tops {
                let place = Place { target, prompt: batch[p], position: top.position };
                top_sums.iter_mut().zip(&top.changes).for_each(|(sum, change)| *sum += change);
                repairers(plan, clean, p * positions + top.position, place, &top.changes, shard);
                for n in 0..top.neurons.len() {
                    neurons(plan, clean, source, n, p * positions + top.position, place, top, shard)?;
                }
            }
            shard.sums.add_changes(target, Sums::TOP, cell.tops.len(), &top_sums);
        }
        Ok(())
    }
}

/// The components that changed most.
fn repairers(plan: &Plan, clean: &CleanBatch, i: usize, place: Place, changes: &[f64], shard: &mut Shard) {
    let (_, _, ablated) = plan.parts(place.target);
    let mut order: Vec<usize> = (0..changes.len()).filter(|&slot| plan.can_repair(&ablated, slot)).collect();
    order.sort_by(|&a, &b| changes[b].abs().total_cmp(&changes[a].abs()).then(a.cmp(&b)));
    let effects = &clean.effects;
    let scale = f64::from(effects.norm_scale[i]);
    for (rank, &slot) in order.iter().take(REPAIRERS).enumerate() {
        let (layer, head) = (plan.slots.layer(slot), plan.slots.head(slot));
        let dot = match head {
            Some(head) => effects.heads[layer][i * plan.slots.heads + head],
            None => effects.mlps[layer][i],
        };
        let direct_effect = (f64::from(dot) / scale) as f32;
        shard.repairs.push(RepairRow { place, rank, layer, head, direct_effect, change: changes[slot] as f32 });
    }
}

/// The neurons of one MLP at one top token.
#[allow(clippy::too_many_arguments)]
fn neurons(
    plan: &Plan,
    clean: &CleanBatch,
    source: &NeuronSource,
    n: usize,
    i: usize,
    place: Place,
    top: &TopChange,
    shard: &mut Shard,
) -> Result<()> {
    let changes = &top.neurons[n];
    if changes.is_empty() {
        return Ok(());
    }
    let (post, w) = source.row(clean, n, i)?;
    let scale = f64::from(clean.effects.norm_scale[i]);
    let effect = |m: usize| (f64::from(post[m]) * f64::from(w[m]) / scale) as f32;
    let mut order: Vec<usize> = (0..changes.len()).collect();
    order.sort_unstable_by(|&a, &b| changes[b].total_cmp(&changes[a]).then(a.cmp(&b)));
    let layer = plan.neuron_layers[n];
    for (rank, &m) in order.iter().take(plan.top_k).enumerate() {
        let (expert, neuron) = of_neuron(plan.architecture, m);
        let change = changes[m] as f32;
        shard.neurons.push(NeuronRow { place, layer, rank, expert, neuron, direct_effect: effect(m), change });
    }
    let ranked: Vec<f64> = order.iter().map(|&m| changes[m]).collect();
    shard.totals.push(NeuronTotal {
        place,
        layer,
        total: (ranked.iter().sum::<f64>() + top.expert_biases[n]) as f32,
        positive: ranked.iter().filter(|&&c| c > 0.0).sum::<f64>() as f32,
        absolute: ranked.iter().map(|c| c.abs()).sum::<f64>() as f32,
        top_percent: ranked[..(ranked.len() / 100).max(1)].iter().sum::<f64>() as f32,
    });
    let curve = plan.curve(place.target, n);
    shard.sums.add_curve(curve, &ranked, top.direct_effect);
    if plan.samples_rank(top.rank) {
        shard.samples.push((curve as u32, order.iter().map(|&m| effect(m)).collect()));
    }
    Ok(())
}
