//! The rows of one file of each table that `ablate` writes, in the tables' order.

use std::io::Cursor;
use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result};
use arrow::array::{ArrayRef, AsArray, FixedSizeListArray, Float32Array, UInt32Array};
use arrow::datatypes::{DataType, Field, Float32Type, Schema, UInt32Type};
use arrow::ipc::reader::FileReader;
use arrow::ipc::writer::FileWriter;
use arrow::record_batch::RecordBatch;
use selfrepair_core::columns::{self, floats, numbers};
use selfrepair_core::sink::{Part, RowSink};
use selfrepair_core::tables::{ABLATIONS, COMPONENT_REPAIRS, DISTRIBUTIONS, NEURON_REPAIRS, NEURON_TOTALS, Table};
use selfrepair_core::untrusted::without_panic;

use super::key::{TargetKey, expert_columns, repairer_columns, target_columns};
use super::plan::{Job, Plan};
use super::sums::{SavedSums, Sums};
use crate::repair::Repair;

/// What a token's row is about: the ablation, hold and component, and the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// By [`Plan::target`], which sorts as the tables do.
    pub target: usize,
    pub prompt: usize,
    pub position: usize,
}

pub struct RepairRow {
    pub place: Place,
    pub rank: usize,
    pub layer: usize,
    pub head: Option<usize>,
    pub direct_effect: f32,
    pub change: f32,
}

pub struct NeuronRow {
    pub place: Place,
    pub layer: usize,
    pub rank: usize,
    /// Where the MLP is a mixture; then `neuron` is counted in it.
    pub expert: Option<usize>,
    pub neuron: usize,
    pub direct_effect: f32,
    pub change: f32,
}

pub struct NeuronTotal {
    pub place: Place,
    pub layer: usize,
    pub total: f32,
    pub positive: f32,
    pub absolute: f32,
    pub top_percent: f32,
}

/// Under which name the samples of a shard's neurons are kept.
fn samples_name(number: usize) -> String {
    format!("sums/samples-{number:05}.arrow")
}

/// Whether everything of a shard is there. Samples of neurons are removed once the medians are `done`.
pub fn is_written(sink: &dyn RowSink, plan: &Plan, number: usize, done: bool) -> bool {
    let has = |table| sink.has(table, Part::Shard(number));
    let effects = || has(&ABLATIONS) && has(&COMPONENT_REPAIRS);
    let neurons = || has(&NEURON_REPAIRS) && has(&NEURON_TOTALS) && (done || sink.has_kept(&samples_name(number)));
    let distributions = !plan.outputs.distribution || has(&DISTRIBUTIONS);
    (!plan.outputs.effects || effects()) && distributions && (plan.curves() == 0 || neurons())
}

/// One shard while it is computed. The rows of `ablations` are laid out in the table's order from the start.
pub struct Shard {
    /// The prompts and where the rows of each begin in a target's block.
    prompts: Vec<usize>,
    starts: Vec<usize>,
    /// First measured position of each prompt.
    first_positions: Vec<usize>,
    /// Rows of one target.
    block: usize,
    /// Those that have been computed, or will be, in order.
    targets: Vec<usize>,
    /// Blocks of the targets.
    rows: Vec<Repair>,
    /// (log-probability, divergence) of every row, if distributions are measured.
    distributions: Vec<(f64, f64)>,
    pub repairs: Vec<RepairRow>,
    pub neurons: Vec<NeuronRow>,
    pub totals: Vec<NeuronTotal>,
    /// Curve and the direct effects of its token's neurons, in the order of their change.
    pub samples: Vec<(u32, Vec<f32>)>,
    pub sums: Sums,
}

impl Shard {
    /// No rows yet, for a part of a shard's work.
    pub fn of(plan: &Plan, job: &Job) -> Self {
        Self::of_targets(plan, &job.prompts, plan.targets_of(&job.groups))
    }

    /// No rows yet, for all ablations of some prompts.
    pub fn new(plan: &Plan, group: &[usize]) -> Self {
        Self::of_targets(plan, group, (0..plan.targets()).collect())
    }

    fn of_targets(plan: &Plan, group: &[usize], targets: Vec<usize>) -> Self {
        let mut starts = Vec::new();
        let mut block = 0;
        for &p in group {
            starts.push(block);
            block += plan.prompts.measured(p).len();
        }
        let rows = targets.len() * block;
        Self {
            prompts: group.to_vec(),
            starts,
            first_positions: group.iter().map(|&p| plan.prompts.measured(p).start).collect(),
            block,
            targets,
            rows: vec![Repair::default(); rows],
            distributions: if plan.outputs.distribution { vec![(0.0, 0.0); rows] } else { vec![] },
            repairs: vec![],
            neurons: vec![],
            totals: vec![],
            samples: vec![],
            sums: Sums::new(plan),
        }
    }

    pub fn add(
        &mut self,
        target: usize,
        prompt: usize,
        position: usize,
        r: &Repair,
        distribution: Option<(f32, f32)>,
        weight: f64,
    ) {
        let i = self.prompts.partition_point(|&p| p < prompt);
        let row = self.block_of(target) * self.block + self.starts[i] + position - self.first_positions[i];
        self.rows[row].add(r, weight);
        if let Some((log_prob, kl)) = distribution {
            self.distributions[row].0 += weight * f64::from(log_prob);
            self.distributions[row].1 += weight * f64::from(kl);
        }
    }
}

impl Shard {
    /// Some rows of `ablations`, in the table's order, without the key.
    pub fn columns(&self, rows: Range<usize>) -> Result<Vec<ArrayRef>> {
        self.rows.get(rows).map(repair_columns).context("a shard has other rows than its file")
    }

    fn block_of(&self, target: usize) -> usize {
        self.targets.partition_point(|&t| t < target)
    }

    /// Takes over the rows of a part.
    pub fn absorb(&mut self, plan: &Plan, part: Shard) {
        for (i, &prompt) in part.prompts.iter().enumerate() {
            let into = self.starts[self.prompts.partition_point(|&p| p < prompt)];
            let (from, n) = (part.starts[i], plan.prompts.measured(prompt).len());
            for (number, &target) in part.targets.iter().enumerate() {
                let (from, into) = (number * part.block + from, self.block_of(target) * self.block + into);
                self.rows[into..into + n].copy_from_slice(&part.rows[from..from + n]);
                if plan.outputs.distribution {
                    self.distributions[into..into + n].copy_from_slice(&part.distributions[from..from + n]);
                }
            }
        }
        self.repairs.extend(part.repairs);
        self.neurons.extend(part.neurons);
        self.totals.extend(part.totals);
        self.samples.extend(part.samples);
        self.sums.add(&part.sums);
    }
}

/// A shard that only needs to be written.
pub struct Finished {
    shard: Shard,
    number: usize,
    /// Which tables are written.
    effects: bool,
    neurons: bool,
    /// Key columns of every target.
    keys: Vec<TargetKey>,
    /// (name, bytes) of the sums that include this shard.
    sums: Option<(String, Vec<u8>)>,
}

impl Finished {
    pub fn new(plan: &Plan, shard: Shard, saved: &mut SavedSums, number: usize) -> Result<Self> {
        let sums = saved.merge(number, &shard.sums)?;
        let keys = (0..plan.targets()).map(|target| TargetKey::of(plan, target)).collect();
        Ok(Self { keys, shard, number, effects: plan.outputs.effects, neurons: plan.curves() > 0, sums })
    }

    /// Writes every table, and then says that the shard is finished.
    pub fn write(mut self, sink: &dyn RowSink) -> Result<()> {
        let shard = &mut self.shard;
        shard.repairs.sort_by_key(|r| (r.place, r.rank));
        shard.neurons.sort_by_key(|r| (r.place, r.layer, r.rank));
        shard.totals.sort_by_key(|r| (r.place, r.layer));
        shard.samples.sort_by_key(|sample| sample.0);
        if self.effects {
            self.write_repairs(sink)?;
            self.write_blocks(&ABLATIONS, sink, |rows| repair_columns(&self.shard.rows[rows]))?;
        }
        if self.neurons {
            self.write_neurons(sink)?;
            self.write_totals(sink)?;
            sink.keep(&samples_name(self.number), &sample_bytes(&self.shard.samples)?)?;
        }
        if !self.shard.distributions.is_empty() {
            self.write_blocks(&DISTRIBUTIONS, sink, |rows| {
                let of = |f: fn(&(f64, f64)) -> f64| {
                    floats(self.shard.distributions[rows.clone()].iter().map(|d| f(d) as f32))
                };
                vec![of(|d| d.0), of(|d| d.1)]
            })?;
        }
        if let Some((name, bytes)) = &self.sums {
            sink.keep(name, bytes)?;
        }
        sink.finish_shard(self.number)
    }

    /// Writes a table that has a row for every target and token, target by target.
    fn write_blocks(
        &self,
        table: &Table,
        sink: &dyn RowSink,
        values: impl Fn(Range<usize>) -> Vec<ArrayRef>,
    ) -> Result<()> {
        let (shard, schema) = (&self.shard, table.schema());
        let mut writer = sink.open(table, Part::Shard(self.number), schema.clone(), shard.block)?;
        let places: Vec<(usize, usize)> = (0..shard.prompts.len())
            .flat_map(|i| {
                let end = shard.starts.get(i + 1).copied().unwrap_or(shard.block);
                let first = shard.first_positions[i];
                (0..end - shard.starts[i]).map(move |s| (i, first + s))
            })
            .map(|(i, s)| (shard.prompts[i], s))
            .collect();
        for target in 0..self.keys.len() {
            let rows = target * shard.block..(target + 1) * shard.block;
            let mut columns = self.key_columns(places.iter().map(|&(p, s)| (target, p, s)));
            columns.extend(values(rows));
            let batch = RecordBatch::try_new(schema.clone(), columns);
            writer.write(&batch.with_context(|| format!("building the table {}", table.name))?)?;
            let next = self.keys.get(target + 1);
            if next.is_none_or(|next| next.layer() != self.keys[target].layer()) {
                writer.end_of_block()?;
            }
        }
        writer.finish()
    }

    /// The columns that say what was ablated, and where.
    fn key_columns(&self, places: impl Iterator<Item = (usize, usize, usize)> + Clone) -> Vec<ArrayRef> {
        let mut columns = target_columns(places.clone().map(|(target, ..)| &self.keys[target]));
        columns.push(columns::keys(places.clone().map(|(_, prompt, _)| prompt)));
        columns.push(columns::keys(places.map(|(.., position)| position)));
        columns
    }

    fn write_rows<R>(
        &self,
        table: &Table,
        sink: &dyn RowSink,
        rows: &[R],
        place: impl Fn(&R) -> Place,
        columns: impl Fn(&[R]) -> Vec<ArrayRef>,
    ) -> Result<()> {
        let mut writer = sink.open(table, Part::Shard(self.number), table.schema(), 1)?;
        for rows in rows.chunks(64 * 1024) {
            let places = rows.iter().map(&place).map(|p| (p.target, p.prompt, p.position));
            let mut all = self.key_columns(places);
            all.extend(columns(rows));
            let batch = RecordBatch::try_new(table.schema(), all);
            writer.write(&batch.with_context(|| format!("building the table {}", table.name))?)?;
        }
        writer.finish()
    }

    fn write_repairs(&self, sink: &dyn RowSink) -> Result<()> {
        let shard = &self.shard;
        self.write_rows(
            &COMPONENT_REPAIRS,
            sink,
            &shard.repairs,
            |r| r.place,
            |rows| {
                let mut columns = vec![ranks(rows.iter().map(|r| r.rank))];
                columns.extend(repairer_columns(rows.iter().map(|r| (r.layer, r.head))));
                columns.push(floats(rows.iter().map(|r| r.direct_effect)));
                columns.push(floats(rows.iter().map(|r| r.change)));
                columns
            },
        )
    }

    fn write_neurons(&self, sink: &dyn RowSink) -> Result<()> {
        self.write_rows(
            &NEURON_REPAIRS,
            sink,
            &self.shard.neurons,
            |r| r.place,
            |rows| {
                let mut columns = Vec::from(expert_columns(rows.iter().map(|r| (r.layer, r.expert))));
                columns.extend([
                    ranks(rows.iter().map(|r| r.rank)),
                    columns::keys(rows.iter().map(|r| r.neuron)),
                    floats(rows.iter().map(|r| r.direct_effect)),
                    floats(rows.iter().map(|r| r.change)),
                ]);
                columns
            },
        )
    }

    fn write_totals(&self, sink: &dyn RowSink) -> Result<()> {
        self.write_rows(
            &NEURON_TOTALS,
            sink,
            &self.shard.totals,
            |r| r.place,
            |rows| {
                let mut columns = Vec::from(expert_columns(rows.iter().map(|r| (r.layer, None))));
                columns.extend([
                    floats(rows.iter().map(|r| r.total)),
                    floats(rows.iter().map(|r| r.positive)),
                    floats(rows.iter().map(|r| r.absolute)),
                    floats(rows.iter().map(|r| r.top_percent)),
                ]);
                columns
            },
        )
    }
}

/// Ranks count from 1 in tables.
fn ranks(from_zero: impl Iterator<Item = usize>) -> ArrayRef {
    columns::keys(from_zero.map(|rank| rank + 1))
}

fn repair_columns(rows: &[Repair]) -> Vec<ArrayRef> {
    let column = |f: fn(&Repair) -> f64| floats(rows.iter().map(|r| f(r) as f32));
    vec![
        column(|r| r.logit_change),
        column(|r| r.direct_effect),
        column(|r| r.ablated_direct_effect),
        column(|r| r.self_repair),
        column(|r| r.repair_attention),
        column(|r| r.repair_mlp),
        column(|r| r.repair_norm),
        column(|r| r.repair_write_norm),
        column(|r| r.repair_write_norm_own),
        column(|r| r.repair_by_erasers),
        column(|r| r.norm_scale),
        column(|r| r.ablated_norm_scale),
        column(|r| r.ablated_residual_norm),
    ]
}

/// Neurons' direct effects, which are kept until the medians are taken, as an Arrow IPC file: (curve, \[M\]).
fn sample_bytes(samples: &[(u32, Vec<f32>)]) -> Result<Vec<u8>> {
    let width = samples.first().map_or(0, |s| s.1.len()) as i32;
    let item = Arc::new(Field::new("item", DataType::Float32, false));
    let fields = vec![
        Field::new("curve", DataType::UInt32, false),
        Field::new("direct_effects", DataType::FixedSizeList(item.clone(), width), false),
    ];
    let schema = Arc::new(Schema::new(fields));
    let mut writer = FileWriter::try_new(Vec::new(), &schema)?;
    if !samples.is_empty() {
        let values = Float32Array::from_iter_values(samples.iter().flat_map(|s| s.1.iter().copied()));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from_iter_values(samples.iter().map(|s| s.0))),
            Arc::new(FixedSizeListArray::try_new(item, width, Arc::new(values), None)?),
        ];
        writer.write(&RecordBatch::try_new(schema, columns)?)?;
    }
    Ok(writer.into_inner()?)
}

/// Adds the samples kept under `name` to those of each curve.
pub fn read_samples(sink: &dyn RowSink, name: &str, samples: &mut [Vec<Vec<f32>>]) -> Result<()> {
    let bytes = sink.kept(name)?;
    let read = || {
        for batch in FileReader::try_new(Cursor::new(bytes), None)? {
            let batch = batch?;
            let curves = numbers::<UInt32Type>(&batch, 0)?.values();
            let lists = batch.columns().get(1).and_then(|c| c.as_fixed_size_list_opt()).context("it has no lists")?;
            for (i, &curve) in curves.iter().enumerate() {
                let values = lists.value(i);
                let values = values.as_primitive_opt::<Float32Type>().context("its lists are not of floats")?;
                let into = samples.get_mut(curve as usize).context("it has a curve that nobody asked for")?;
                into.push(values.values().to_vec());
            }
        }
        Ok(())
    };
    without_panic(read).with_context(|| format!("{name} cannot be read"))
}
