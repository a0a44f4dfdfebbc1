//! Confidence intervals of the means: a bootstrap over prompts.
//!
//! The tokens of a prompt are not independent, so whole prompts are drawn with replacement. All heads use the same
//! draws, so a layer's interval includes the correlation between its heads. A replicate of a head's mean is Σ w·sum / Σ
//! w·tokens over prompts, where w is how often the prompt was drawn. A layer's mean is the mean over its heads, as in
//! `layer_summary`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use arrow::array::{ArrayRef, AsArray, Float32Array, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;

use super::condition::{ABLATION, COMPONENT, Condition, HOLD, HOLD_OWN_MLP, HOLD_VALUE, STRENGTH, WHERE};
use super::{Tables, quantiles};
use selfrepair_core::columns;
use selfrepair_core::tables::{Column, Table, Type, name_type};
use selfrepair_store::{Metadata, TableWriter};

pub const TABLE: &str = "uncertainty";

/// Raised when the same measurements would give other numbers.
pub const VERSION: u32 = 2;

const RESAMPLES: usize = 1000;
const SEED: u64 = 0x5e1f_4e9a;
/// The interval leaves out this share on each side.
const TAIL: f64 = 0.025;

/// Columns of `ablations` whose means are taken, in the order of the replicates.
const MEANS: [&str; 8] = [
    "direct_effect",
    "logit_change",
    "self_repair",
    "repair_attention",
    "repair_mlp",
    "repair_norm",
    "repair_write_norm",
    "repair_by_erasers",
];
const EFFECT: usize = 0;
const REPAIR: usize = 2;
/// The means, and self_repair / direct_effect of the means.
const MEASURES: usize = MEANS.len() + 1;

pub const SCHEMA: Table = Table {
    name: TABLE,
    grain: "a row of head_summary, a layer or (layer null) the whole run, and a measure",
    key: 11,
    setting: None,
    columns: &[
        ABLATION,
        STRENGTH,
        HOLD,
        HOLD_VALUE,
        HOLD_OWN_MLP,
        COMPONENT,
        Column("name?", Type::Name, "", "name of the component; null for the mean over several"),
        Column("layer?", Type::Key, "", "block; null for the mean over all ablated components of the run"),
        Column("head?", Type::Key, "", "head; null for the mean over a layer's heads, and where there are no heads"),
        Column("subset", Type::Text, "", "all tokens, or each component's top tokens"),
        Column("measure", Type::Text, "", "column of ablations whose mean this is, or fraction_of_means"),
        Column(
            "prompts",
            Type::Count,
            "",
            "prompts with such tokens (for several components, the largest number); with fewer than about ten, the interval is too narrow",
        ),
        Column("value?", Type::Float, "logits", "the mean; for fraction_of_means, self_repair / direct_effect"),
        Column(
            "standard_error?",
            Type::Float,
            "logits",
            "standard deviation of 1000 bootstrap replicates over prompts",
        ),
        Column("low?", Type::Float, "logits", "2.5 % quantile of the replicates"),
        Column("high?", Type::Float, "logits", "97.5 % quantile of the replicates"),
    ],
};

/// Sums over a prompt's tokens of one head, and their number last.
type Sums = [f64; MEANS.len() + 1];

/// The means of one replicate; NaN where no token was drawn.
type Means = [f64; MEANS.len()];

/// One component's tokens, all or top, summed by prompt.
struct Member {
    name: String,
    head: Option<usize>,
    /// (place of the prompt in the draws, sums)
    prompts: Vec<(usize, Sums)>,
}

/// Means of the sample itself and of every replicate.
struct Replicates {
    value: Means,
    drawn: Vec<Means>,
    prompts: usize,
}

/// How often each prompt is drawn in each resample, [resample][prompt].
struct Draws {
    prompts: usize,
    weights: Vec<f32>,
}

/// Writes the table, layer after layer, so that memory does not grow with the model.
pub fn write(tables: &Tables, out: &Path, meta: &Metadata) -> Result<()> {
    let path = out.join("tables").join(TABLE).join(format!("{TABLE}.parquet"));
    let mut writer = TableWriter::create(&SCHEMA, &path, meta)?;
    let places = prompt_places(tables)?;
    let draws = Draws::new(places.len(), RESAMPLES, SEED);
    for condition in Condition::all(tables)? {
        write_group(&condition, tables, &places, &draws, &mut writer)?;
    }
    writer.finish()
}

/// The rows about components that were ablated in the same way.
fn write_group(
    condition: &Condition,
    tables: &Tables,
    places: &HashMap<i64, usize>,
    draws: &Draws,
    writer: &mut TableWriter,
) -> Result<()> {
    let layers = format!("select distinct layer from ablations where {WHERE} and layer is not null order by layer");
    let mut run = [Vec::new(), Vec::new()];
    let layers = tables.collect_values(&layers, &condition.parameters())?;
    for layer in integers(&layers, 0)?.into_iter().flatten() {
        let members = members(condition, tables, layer, places)?;
        let mut rows = Output::default();
        for (subset, members) in members.iter().enumerate() {
            let replicates: Vec<Replicates> = members.par_iter().map(|m| draws.of(m)).collect();
            for (member, of_member) in members.iter().zip(&replicates) {
                let place = Place { name: Some(member.name.clone()), layer: Some(layer as usize), head: member.head };
                rows.push(place, SUBSETS[subset], of_member);
            }
            // Without heads, a layer is its one component and has its row already.
            if members.iter().any(|m| m.head.is_some()) {
                let place = Place { name: None, layer: Some(layer as usize), head: None };
                rows.push(place, SUBSETS[subset], &Replicates::mean(&replicates));
            }
            run[subset].extend(replicates);
        }
        writer.write(&rows.batch(condition)?)?;
    }
    let mut rows = Output::default();
    for (subset, replicates) in run.iter().enumerate() {
        rows.push(Place { name: None, layer: None, head: None }, SUBSETS[subset], &Replicates::mean(replicates));
    }
    writer.write(&rows.batch(condition)?)
}

/// The layer's components with all their tokens, and with their top tokens.
fn members(
    condition: &Condition,
    tables: &Tables,
    layer: i64,
    places: &HashMap<i64, usize>,
) -> Result<[Vec<Member>; 2]> {
    let sums: String = MEANS
        .iter()
        .map(|c| {
            format!(
                ", sum(cast(a.{c} as double)) as all_{c}\
                     , coalesce(sum(case when t.prompt is not null then cast(a.{c} as double) end), 0) as top_{c}"
            )
        })
        .collect();
    let query = format!(
        "select a.head, a.prompt, a.name, count(*) as all_tokens, count(t.prompt) as top_tokens{sums} \
             from (select * from ablations where {WHERE} and layer = $layer) a \
             left join (select name, prompt, position from top_tokens \
             where component = $component and layer = $layer) t \
             on a.name = t.name and a.prompt = t.prompt and a.position = t.position \
             group by a.head, a.prompt, a.name order by a.head, a.name, a.prompt"
    );
    let of_layer = [condition.parameters(), vec![("layer", layer.into())]].concat();
    let rows = tables.collect_values(&query, &of_layer)?;
    let (heads, prompts, names) = (integers(&rows, 0)?, integers(&rows, 1)?, texts(&rows, 2)?);
    let mut out = [Vec::new(), Vec::new()];
    for (subset, name) in SUBSETS.iter().enumerate() {
        let tokens = numbers(&rows, &format!("{name}_tokens"))?;
        let columns: Vec<Vec<f64>> =
            MEANS.iter().map(|c| numbers(&rows, &format!("{name}_{c}"))).collect::<Result<_>>()?;
        let members: &mut Vec<Member> = &mut out[subset];
        for row in 0..heads.len() {
            if members.last().is_none_or(|m| m.name != names[row]) {
                let head = heads[row].map(|h| h as usize);
                members.push(Member { name: names[row].clone(), head, prompts: Vec::new() });
            }
            let prompt = prompts[row].context("a row of ablations without a prompt")?;
            let place = *places.get(&prompt).with_context(|| format!("prompt {prompt} is not in `clean`"))?;
            let sums = std::array::from_fn(|i| columns.get(i).map_or(tokens[row], |c| c[row]));
            if let (true, Some(member)) = (tokens[row] > 0.0, members.last_mut()) {
                member.prompts.push((place, sums));
            }
        }
    }
    Ok(out)
}

const SUBSETS: [&str; 2] = ["all", "top"];

impl Draws {
    /// As many draws of a prompt as there are prompts, in each resample. What is drawn depends on the seed and the
    /// number of prompts only.
    fn new(prompts: usize, resamples: usize, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut weights = vec![0f32; prompts * resamples];
        for drawn in weights.chunks_exact_mut(prompts.max(1)) {
            for _ in 0..prompts {
                // The high half of a product: uniform to 1 part in 2⁶⁴ / prompts.
                let place = (u128::from(random.next_u64()) * prompts as u128) >> 64;
                drawn[place as usize] += 1.0;
            }
        }
        Self { prompts, weights }
    }

    fn of(&self, member: &Member) -> Replicates {
        let drawn = self.weights.chunks_exact(self.prompts.max(1));
        Replicates {
            value: member.means(|_| 1.0),
            drawn: drawn.map(|weights| member.means(|place| f64::from(weights[place]))).collect(),
            prompts: member.prompts.len(),
        }
    }
}

impl Member {
    /// The means over tokens, each prompt's tokens counted as often as `weight` says.
    fn means(&self, weight: impl Fn(usize) -> f64) -> Means {
        let mut total: Sums = [0.0; MEANS.len() + 1];
        for (place, sums) in &self.prompts {
            let weight = weight(*place);
            total.iter_mut().zip(sums).for_each(|(t, s)| *t += weight * s);
        }
        // 0 / 0 is NaN: a replicate without a token has no mean.
        std::array::from_fn(|i| total[i] / total[MEANS.len()])
    }
}

impl Replicates {
    /// The mean over components, of each replicate over those that have one.
    fn mean(of: &[Self]) -> Self {
        let mean = |pick: &dyn Fn(&Self) -> Means| -> Means {
            let (mut total, mut count) = ([0.0; MEANS.len()], 0.0);
            for means in of.iter().map(pick).filter(|m| m[0].is_finite()) {
                total.iter_mut().zip(means).for_each(|(t, m)| *t += m);
                count += 1.0;
            }
            total.map(|t| t / count)
        };
        let drawn = of.first().map_or(0, |r| r.drawn.len());
        Self {
            value: mean(&|r| r.value),
            drawn: (0..drawn).map(|i| mean(&|r| r.drawn[i])).collect(),
            prompts: of.iter().map(|r| r.prompts).max().unwrap_or(0),
        }
    }

    /// The value of a measure in the sample and in each replicate that has one, in ascending order.
    fn measure(&self, measure: usize) -> (f64, Vec<f64>) {
        let take = |m: &Means| m.get(measure).copied().unwrap_or_else(|| m[REPAIR] / m[EFFECT]);
        let mut drawn: Vec<f64> = self.drawn.iter().map(take).filter(|v| v.is_finite()).collect();
        drawn.sort_unstable_by(f64::total_cmp);
        (take(&self.value), drawn)
    }
}

/// What a row is about; a mean over several components has no name.
#[derive(Clone)]
struct Place {
    name: Option<String>,
    layer: Option<usize>,
    head: Option<usize>,
}

struct Row {
    place: Place,
    subset: &'static str,
    measure: &'static str,
    prompts: usize,
    /// value, standard_error, low, high
    numbers: [Option<f32>; 4],
}

/// Rows of the table under construction.
#[derive(Default)]
struct Output(Vec<Row>);

impl Output {
    fn push(&mut self, place: Place, subset: &'static str, replicates: &Replicates) {
        for measure in 0..MEASURES {
            let (value, drawn) = replicates.measure(measure);
            let error = deviation(&drawn);
            let ends = quantiles(drawn, &[TAIL, 1.0 - TAIL]);
            self.0.push(Row {
                place: place.clone(),
                subset,
                measure: MEANS.get(measure).copied().unwrap_or("fraction_of_means"),
                prompts: replicates.prompts,
                numbers: [value, error, ends[0], ends[1]].map(|v| v.is_finite().then_some(v as f32)),
            });
        }
    }

    /// The rows of a layer, or of the whole run, sorted as the table is.
    fn batch(self, condition: &Condition) -> Result<RecordBatch> {
        let mut rows = self.0;
        rows.sort_by(|a, b| {
            let key = |r: &Row| (r.place.head.unwrap_or(usize::MAX), r.place.name.is_none());
            (key(a), a.subset, a.measure).cmp(&(key(b), b.subset, b.measure))
        });
        let mut columns = condition.columns(rows.len());
        let names: StringArray = rows.iter().map(|r| r.place.name.as_deref()).collect();
        columns.extend([
            columns::texts(rows.iter().map(|_| &condition.component)),
            cast(&names, &name_type())?,
            columns::keys_or_null(rows.iter().map(|r| r.place.layer)),
            columns::keys_or_null(rows.iter().map(|r| r.place.head)),
            columns::texts(rows.iter().map(|r| r.subset)),
            columns::texts(rows.iter().map(|r| r.measure)),
            columns::counts(rows.iter().map(|r| r.prompts)),
        ]);
        let number = |i: usize| Arc::new(rows.iter().map(|r| r.numbers[i]).collect::<Float32Array>()) as ArrayRef;
        columns.extend((0..4).map(number));
        Ok(RecordBatch::try_new(SCHEMA.schema(), columns)?)
    }
}

/// Standard deviation; NaN of fewer than two numbers.
fn deviation(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt()
}

/// Place of each prompt in the draws.
fn prompt_places(tables: &Tables) -> Result<HashMap<i64, usize>> {
    let rows = tables.collect("select distinct prompt from clean order by prompt", &[])?;
    Ok(integers(&rows, 0)?.into_iter().flatten().enumerate().map(|(place, prompt)| (prompt, place)).collect())
}

fn integers(rows: &[RecordBatch], column: usize) -> Result<Vec<Option<i64>>> {
    let mut out = Vec::new();
    for batch in rows {
        out.extend(cast(batch.column(column), &DataType::Int64)?.as_primitive::<Int64Type>().iter());
    }
    Ok(out)
}

fn texts(rows: &[RecordBatch], column: usize) -> Result<Vec<String>> {
    let mut out = Vec::new();
    for batch in rows {
        let array = cast(batch.column(column), &DataType::Utf8)?;
        out.extend(array.as_string::<i32>().iter().map(|text| text.unwrap_or_default().to_string()));
    }
    Ok(out)
}

fn numbers(rows: &[RecordBatch], column: &str) -> Result<Vec<f64>> {
    let mut out = Vec::new();
    for batch in rows {
        let array = cast(batch.column_by_name(column).context("a column of sums is missing")?, &DataType::Float64)?;
        out.extend_from_slice(array.as_primitive::<Float64Type>().values());
    }
    Ok(out)
}

#[cfg(test)]
mod tests;
