//! Sums over the whole corpus: the repair graph and the neurons' curves. Each process keeps its sums after every shard
//! in one file, so that a killed run can resume and storage does not grow. Shards are added as integers, so any order
//! and any division among processes give the same bytes.

use std::collections::BTreeSet;
use std::iter::repeat_n;
use std::sync::Arc;

use anyhow::{Context, Result};
use arrow::array::{ArrayRef, Float32Array};
use arrow::record_batch::RecordBatch;
use selfrepair_core::columns;
use selfrepair_core::components::{Ablatable, Component};
use selfrepair_core::ensure_check;
use selfrepair_core::files::sha256_of;
use selfrepair_core::shards::ShardSet;
use selfrepair_core::sink::{Part, RowSink};
use selfrepair_core::tables::{NEURON_CURVES, REPAIR_GRAPH};

use super::key::{TargetKey, expert_columns, repairer_columns, target_columns};
use super::plan::Plan;
use super::shard::read_samples;
use crate::MeasureContext;

/// Shares of the head's direct effect that a neuron's change is held against.
const SHARES: [f64; 5] = [0.5, 0.1, 0.05, 0.025, 0.01];

/// Sums of one shard, or of all so far. For each target and subset of tokens: prompts, Σ n, Σ n² (n tokens of a
/// prompt), and by component Σ x, Σ x², Σ n x (x the sum over a prompt's tokens). For each curve: tokens, and by rank
/// the sum of cumulative shares (over tokens on which anything changes, which are counted) and counts of tokens above
/// each of [`SHARES`].
pub struct Sums {
    values: Vec<f64>,
    slots: usize,
    curves_from: usize,
    neurons: usize,
}

impl Sums {
    pub const ALL: usize = 0;
    pub const TOP: usize = 1;

    pub fn new(plan: &Plan) -> Self {
        let (slots, neurons) = (plan.slots.count(), plan.neurons());
        let curves_from = plan.targets() * 2 * (3 + 3 * slots);
        let curves = plan.curves() * (2 + neurons * (1 + SHARES.len()));
        Self { values: vec![0.0; curves_from + curves], slots, curves_from, neurons }
    }

    fn graph(&mut self, target: usize, subset: usize) -> &mut [f64] {
        let size = 3 + 3 * self.slots;
        &mut self.values[(2 * target + subset) * size..][..size]
    }

    fn curve(&mut self, curve: usize) -> &mut [f64] {
        let size = 2 + self.neurons * (1 + SHARES.len());
        &mut self.values[self.curves_from + curve * size..][..size]
    }

    /// Adds one prompt: how many tokens of the subset it has, and the sum of each component's changes over them.
    pub fn add_changes(&mut self, target: usize, subset: usize, tokens: usize, changes: &[f64]) {
        if tokens == 0 {
            return;
        }
        let n = tokens as f64;
        let graph = self.graph(target, subset);
        graph[0] += 1.0;
        graph[1] += n;
        graph[2] += n * n;
        for (sums, &x) in graph[3..].chunks_exact_mut(3).zip(changes) {
            sums[0] += x;
            sums[1] += x * x;
            sums[2] += n * x;
        }
    }

    /// Adds one token: its neurons' changes, the largest first.
    pub fn add_curve(&mut self, curve: usize, ranked: &[f64], direct_effect: f64) {
        let total: f64 = ranked.iter().map(|c| c.abs()).sum();
        let values = self.curve(curve);
        values[0] += 1.0;
        values[1] += f64::from(u8::from(total > 0.0));
        let mut sum = 0.0;
        for (at_rank, change) in values[2..].chunks_exact_mut(1 + SHARES.len()).zip(ranked) {
            sum += change.abs();
            at_rank[0] += if total > 0.0 { sum / total } else { 0.0 };
            for (count, share) in at_rank[1..].iter_mut().zip(SHARES) {
                *count += f64::from(u8::from(*change > share * direct_effect));
            }
        }
    }

    pub fn add(&mut self, other: &Sums) {
        self.values.iter_mut().zip(&other.values).for_each(|(a, b)| *a += b);
    }
}

/// Mean and its standard error from the sums of one component, a prompt's tokens taken as one observation:
/// Σ_p (x_p − n_p m)² · G / (G − 1), over the square of the number of tokens.
fn mean_and_error(counts: &[f64], sums: &[f64]) -> (f64, Option<f64>) {
    let (prompts, tokens, tokens_squared) = (counts[0], counts[1], counts[2]);
    let mean = sums[0] / tokens;
    let squares = sums[1] - 2.0 * mean * sums[2] + mean * mean * tokens_squared;
    let error = (prompts >= 2.0).then(|| (squares.max(0.0) * prompts / (prompts - 1.0)).sqrt() / tokens);
    (mean, error)
}

/// Where sums and samples are kept until their tables are written.
const FOLDER: &str = "sums";

/// The value of one unit in the integer sums of several shards. Of a shard's sums, which are float64 and far below
/// 2⁶², nothing is lost but what is smaller than this.
const UNIT: f64 = 1.0 / (1u128 << 64) as f64;

/// The sums after some shards, and where they are kept.
pub struct SavedSums<'a> {
    sink: &'a dyn RowSink,
    /// Of this process's set; it writes no other.
    name: String,
    /// Shards that are in the sums of `name`, and in those of other processes.
    shards: BTreeSet<usize>,
    others: BTreeSet<usize>,
    values: Vec<i128>,
    /// Whether the tables made of the sums are there.
    done: bool,
}

impl<'a> SavedSums<'a> {
    /// What earlier runs left, to be continued by a process that computes the shards of `set`.
    pub fn open(context: &MeasureContext<'a>, plan: &Plan, set: ShardSet) -> Result<Self> {
        let sink = context.sink;
        let curves = plan.curves() == 0 || sink.has(&NEURON_CURVES, Part::Whole);
        let done = curves && (!plan.outputs.effects || sink.has(&REPAIR_GRAPH, Part::Whole));
        let name = format!("{FOLDER}/{}.sums", set.name());
        let length = Sums::new(plan).values.len();
        let (shards, values) = read_sums(sink, &name, length).unwrap_or_else(|| (vec![], vec![0; length]));
        let mut others = BTreeSet::new();
        for other in sums_names(sink)?.iter().filter(|&other| *other != name) {
            others.extend(read_sums(sink, other, length).map(|(shards, _)| shards).unwrap_or_default());
        }
        let shards = shards.into_iter().collect();
        Ok(Self { sink, name, shards, others, values, done })
    }

    /// Whether a shard is in the sums.
    pub fn contains(&self, shard: usize) -> bool {
        self.done || self.shards.contains(&shard) || self.others.contains(&shard)
    }

    /// Whether the tables made of the sums are there.
    pub fn are_done(&self) -> bool {
        self.done
    }

    /// Adds a shard that is not in the sums yet, and returns what to keep under which name once the shard is written.
    ///
    /// # Errors
    /// If a sum is not a number.
    pub fn merge(&mut self, shard: usize, sums: &Sums) -> Result<Option<(String, Vec<u8>)>> {
        if self.contains(shard) {
            return Ok(None);
        }
        for (total, &x) in self.values.iter_mut().zip(&sums.values) {
            ensure_check!(x.is_finite(), "a sum over shard {shard} is {x}; the model's numbers overflow here");
            *total += (x / UNIT).round() as i128;
        }
        self.shards.insert(shard);
        let numbers: Vec<u8> = self.values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let shards: Vec<usize> = self.shards.iter().copied().collect();
        let mut bytes = header(self.sink.fingerprint(), &shards, &numbers).into_bytes();
        bytes.extend(numbers);
        Ok(Some((self.name.clone(), bytes)))
    }

    /// The sums of all shards.
    fn total(&self, plan: &Plan) -> Result<Sums> {
        let mut values = self.values.clone();
        for other in sums_names(self.sink)?.iter().filter(|&other| *other != self.name) {
            // The shards of sums that cannot be read were computed again, and are in this process's.
            let Some((_, others)) = read_sums(self.sink, other, values.len()) else { continue };
            values.iter_mut().zip(others).for_each(|(sum, other)| *sum += other);
        }
        let mut sums = Sums::new(plan);
        sums.values.iter_mut().zip(values).for_each(|(sum, v)| *sum = v as f64 * UNIT);
        Ok(sums)
    }

    /// Writes `repair_graph` and `neuron_curves`, and removes what was kept until then.
    pub fn write_tables(&self, plan: &Plan) -> Result<()> {
        if !self.are_done() {
            let mut sums = self.total(plan)?;
            if plan.curves() > 0 {
                sums.write_curves(self.sink, plan)?;
            }
            if plan.outputs.effects {
                sums.write_graph(self.sink, plan)?;
            }
        }
        // Also after a shard was written again that had been summed long before.
        self.sink.kept_names(FOLDER)?.iter().try_for_each(|name| self.sink.remove_kept(name))
    }
}

impl Sums {
    fn write_graph(&mut self, sink: &dyn RowSink, plan: &Plan) -> Result<()> {
        let mut writer = sink.open(&REPAIR_GRAPH, Part::Whole, REPAIR_GRAPH.schema(), 1)?;
        for target in 0..plan.targets() {
            for (subset, name) in [(Sums::ALL, "all"), (Sums::TOP, "top")] {
                writer.write(&graph_rows(plan, target, name, self.graph(target, subset))?)?;
            }
        }
        writer.finish()
    }

    fn write_curves(&mut self, sink: &dyn RowSink, plan: &Plan) -> Result<()> {
        let mut samples = vec![Vec::new(); plan.curves()];
        for name in sink.kept_names(FOLDER)?.iter().filter(|name| name.ends_with(".arrow")) {
            read_samples(sink, name, &mut samples)?;
        }
        let mut writer = sink.open(&NEURON_CURVES, Part::Whole, NEURON_CURVES.schema(), 1)?;
        for target in 0..plan.targets() {
            for n in 0..plan.neuron_layers.len() {
                let (_, hold, component) = plan.parts(target);
                if plan.measures_neurons(hold, &component) {
                    let curve = plan.curve(target, n);
                    let medians = medians(&samples[curve], self.neurons);
                    // Where no neuron changes at any token, as under a head that was pruned, there is no share to speak of.
                    if self.curve(curve)[1] > 0.0 {
                        let key = TargetKey::of(plan, target);
                        writer.write(&curve_rows(&key, plan.neuron_layers[n], self.curve(curve), medians)?)?;
                    }
                }
            }
        }
        writer.finish()
    }
}

/// The names of all processes' sums.
fn sums_names(sink: &dyn RowSink) -> Result<Vec<String>> {
    let mut names = sink.kept_names(FOLDER)?;
    names.retain(|name| name.ends_with(".sums"));
    Ok(names)
}

/// The line before the sums: whose they are, of which shards, and their checksum.
fn header(fingerprint: &str, shards: &[usize], numbers: &[u8]) -> String {
    let shards: Vec<String> = shards.iter().map(usize::to_string).collect();
    format!("{fingerprint} {} {}\n", shards.join(","), sha256_of(numbers))
}

/// Reads sums of the sink's fingerprint, and the shards that are in them. `None` if there are no such sums.
fn read_sums(sink: &dyn RowSink, name: &str, length: usize) -> Option<(Vec<usize>, Vec<i128>)> {
    let bytes = sink.kept(name).ok()?;
    let end = bytes.iter().position(|&b| b == b'\n')?;
    let listed = std::str::from_utf8(&bytes[..end]).ok()?.split(' ').nth(1)?;
    let shards: Vec<usize> = listed.split(',').map(|n| n.parse().ok()).collect::<Option<_>>()?;
    let numbers = &bytes[end + 1..];
    if numbers.len() != 16 * length || bytes[..=end] != *header(sink.fingerprint(), &shards, numbers).as_bytes() {
        return None;
    }
    let values = numbers.chunks_exact(16).map(|chunk| chunk.try_into().ok().map(i128::from_le_bytes));
    Some((shards, values.collect::<Option<_>>()?))
}

fn graph_rows(plan: &Plan, target: usize, subset: &str, sums: &[f64]) -> Result<RecordBatch> {
    let (_, _, ablated) = plan.parts(target);
    // In the order of the key: heads, then MLPs.
    let mut slots: Vec<usize> = (0..plan.slots.count()).filter(|&s| plan.can_repair(&ablated, s)).collect();
    slots.sort_by_key(|&slot| (plan.slots.head(slot).is_none(), slot));
    let (counts, sums) = sums.split_at(3);
    if counts[1] == 0.0 {
        slots.clear();
    }
    let stats: Vec<_> = slots.iter().map(|&slot| mean_and_error(counts, &sums[3 * slot..3 * slot + 3])).collect();
    let n = slots.len();
    let mut columns = target_columns(repeat_n(&TargetKey::of(plan, target), n));
    columns.push(columns::texts(repeat_n(subset, n)));
    columns.extend(repairer_columns(slots.iter().map(|&s| (plan.slots.layer(s), plan.slots.head(s)))));
    let errors: Float32Array = stats.iter().map(|s| s.1.map(|e| e as f32)).collect();
    columns.extend([
        columns::counts(repeat_n(counts[1] as usize, n)),
        columns::floats(stats.iter().map(|s| s.0 as f32)),
        Arc::new(errors),
    ]);
    RecordBatch::try_new(REPAIR_GRAPH.schema(), columns).context("building the repair_graph table")
}

/// Median over samples at each rank.
fn medians(samples: &[Vec<f32>], neurons: usize) -> Vec<f32> {
    let at = |rank: usize| {
        let mut values: Vec<f32> = samples.iter().map(|s| s[rank]).collect();
        values.sort_unstable_by(f32::total_cmp);
        match values.len() {
            0 => f32::NAN,
            n if n % 2 == 1 => values[n / 2],
            n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
        }
    };
    (0..neurons).map(at).collect()
}

fn curve_rows(key: &TargetKey, neuron_layer: usize, sums: &[f64], medians: Vec<f32>) -> Result<RecordBatch> {
    let (tokens, changed, ranks) = (sums[0], sums[1], medians.len());
    let column = |i: usize| -> ArrayRef {
        let over = if i == 0 { changed } else { tokens };
        let values = sums[2..].chunks_exact(1 + SHARES.len()).map(|at| (at[i] / over) as f32);
        columns::floats(values)
    };
    let mut columns = target_columns(repeat_n(key, ranks));
    columns.extend(expert_columns(repeat_n((neuron_layer, None), ranks)));
    columns.extend([columns::keys(1..=ranks), columns::counts(repeat_n(tokens as usize, ranks))]);
    columns.extend((0..=SHARES.len()).map(column));
    columns.push(columns::floats(medians));
    RecordBatch::try_new(NEURON_CURVES.schema(), columns).context("building the neuron_curves table")
}

impl Plan<'_> {
    /// Whether a component can change when another is ablated: heads of later layers, and MLPs that read it.
    pub fn can_repair(&self, ablated: &Ablatable, slot: usize) -> bool {
        let own_mlp = self.own_mlp_reacts() && matches!(ablated.component, Component::Head | Component::Attention);
        let first_mlp = if own_mlp { ablated.layer } else { ablated.layer + 1 };
        match self.slots.head(slot) {
            Some(_) => self.slots.layer(slot) > ablated.layer,
            None => self.slots.layer(slot) >= first_mlp,
        }
    }

    /// Curves of neurons, a target and measured layer each.
    pub fn curves(&self) -> usize {
        self.targets() * self.neuron_layers.len()
    }

    /// Neurons in a curve.
    fn neurons(&self) -> usize {
        if self.curves() > 0 { self.architecture.d_mlp } else { 0 }
    }

    pub fn curve(&self, target: usize, neuron_layer: usize) -> usize {
        target * self.neuron_layers.len() + neuron_layer
    }

    /// Whether the top token of that rank is among those whose neurons' direct effects are kept for the median: all,
    /// or about a hundred spread evenly.
    pub fn samples_rank(&self, rank: usize) -> bool {
        rank.is_multiple_of(self.top.count().div_ceil(100))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_takes_a_prompt_as_one_observation() {
        // Two prompts of 2 and 1 tokens with changes (1, 3) and (5): mean 3, residuals per prompt 4 − 6 and 5 − 3,
        // so √((4 + 4) · 2 / 1) / 3 = 4/3.
        let counts = [2.0, 3.0, 5.0];
        let sums = [9.0, 16.0 + 25.0, 8.0 + 5.0];
        let (mean, error) = mean_and_error(&counts, &sums);
        assert!((mean - 3.0).abs() < 1e-12 && (error.unwrap() - 4.0 / 3.0).abs() < 1e-12, "{mean} {error:?}");
        assert_eq!(mean_and_error(&[1.0, 2.0, 4.0], &[4.0, 16.0, 8.0]).1, None);
    }

    #[test]
    fn curves_count_shares_by_rank() {
        let mut sums = Sums { values: vec![0.0; 14], slots: 0, curves_from: 0, neurons: 2 };
        // Of the absolute change 4, the first neuron has 3; of a direct effect of 10 it is 30 %, the second −10 %.
        sums.add_curve(0, &[3.0, -1.0], 10.0);
        assert_eq!(sums.values, [1.0, 1.0, 0.75, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn the_median_is_taken_at_each_rank() {
        assert_eq!(medians(&[vec![1.0, 5.0], vec![3.0, 6.0]], 2), [2.0, 5.5]);
        assert_eq!(medians(&[vec![1.0], vec![9.0], vec![3.0]], 1), [3.0]);
    }
}
