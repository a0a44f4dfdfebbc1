//! Rows that several pieces would have: each is kept once.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};
use arrow::array::{ArrayRef, AsArray, BooleanArray};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{DataType, Int64Type};
use arrow::record_batch::RecordBatch;
use selfrepair_core::additions::{Additions, compared_prompts};
use selfrepair_core::components::Ablatable;
use selfrepair_core::config::Kind;
use selfrepair_core::own_files;
use selfrepair_core::pieces::{Ablation, Coverage, Outputs, Piece};
use selfrepair_core::tables::{
    DISTRIBUTIONS, HEAD_SIMILARITY, NEURON_CURVES, NEURON_REPAIRS, NEURON_TOTALS, PAIRS, ROUNDING, SELF_ADDITIONS,
    STREAM_ADDITIONS, TOP_TOKENS, Table,
};

use crate::pieces::{self, OpenPiece};
use crate::records;
use crate::run_folder::Stage;
use crate::stage_files::parquet_batches;

/// The rows of a file that are not kept.
pub(crate) enum Leave {
    Nothing,
    Everything,
    Rows(BTreeSet<RowKey>),
}

/// What a row is about. Text and numbers as the tables have them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RowKey {
    /// Ablation and hold; `None` in a table without them.
    ablation: Option<(String, String)>,
    name: String,
    neuron_layer: Option<i64>,
}

impl RowKey {
    pub(crate) fn of(ablation: &Ablation, neuron_layer: Option<usize>) -> Self {
        let names = (ablation.kind.name().to_string(), ablation.hold.name());
        let neuron_layer = neuron_layer.map(|layer| layer as i64);
        Self { ablation: Some(names), name: ablation.component.name(), neuron_layer }
    }

    pub(crate) fn of_component(component: &Ablatable) -> Self {
        Self { ablation: None, name: component.name(), neuron_layer: None }
    }
}

fn is_of_neurons(table: &Table) -> bool {
    [&NEURON_REPAIRS, &NEURON_TOTALS, &NEURON_CURVES].iter().any(|t| t.name == table.name)
}

/// Tables of additions. Those of a piece go as a whole.
pub(crate) fn is_of_additions(table: &Table) -> bool {
    [&SELF_ADDITIONS, &STREAM_ADDITIONS, &HEAD_SIMILARITY].iter().any(|t| t.name == table.name)
}

/// Prompts on which a piece compares outputs of heads.
fn compared_by(piece: &Piece) -> usize {
    piece.additions.as_ref().map_or(0, Additions::compared_prompts)
}

fn without_similarity(additions: Option<Additions>) -> Option<Additions> {
    additions.and_then(Additions::without_similarity)
}

/// What is left of a finished piece when another one has compared the outputs of heads on more prompts; `None` if the
/// other has not.
///
/// # Errors
/// If a component of the piece cannot be read.
pub(crate) fn without_fewer_compared(piece: &Piece, other: &Piece) -> Result<Option<Piece>> {
    let fewer = compared_by(piece) > 0 && compared_by(piece) < compared_by(other);
    let rest = || {
        let ablations = piece.ablations().iter().copied().collect();
        Piece::new(ablations, piece.outputs.clone(), without_similarity(piece.additions.clone()))
    };
    fewer.then(rest).transpose()
}

/// What finished pieces have, but for one of them.
pub(crate) struct There {
    coverage: Coverage,
    components: BTreeSet<Ablatable>,
    /// Those that have rows in `top_tokens`.
    top_tokens: BTreeSet<String>,
    tables: BTreeSet<String>,
}

impl There {
    pub(crate) fn of(root: &Path, but: usize) -> Result<Self> {
        let finished = pieces::finished(root)?.into_iter().filter(|(record, _)| record.number != but);
        let pieces: Vec<Piece> = finished.map(|(_, piece)| piece).collect();
        let (mut top_tokens, mut tables) = (BTreeSet::new(), BTreeSet::new());
        for (name, _) in records::any_manifest(root, Stage::Ablate)?.unwrap_or_default().files {
            let Some((table, file)) = name.strip_prefix("tables/").and_then(|rest| rest.split_once('/')) else {
                continue;
            };
            // An empty table is of no piece.
            if pieces::piece_of_file(file).is_none_or(|number| number == but) {
                continue;
            }
            if !own_files::is_file(&root.join(&name)) {
                continue;
            }
            if table == TOP_TOKENS.name {
                top_tokens.extend(names_in(&root.join(&name))?);
            }
            tables.insert(table.to_string());
        }
        let components = pieces.iter().flat_map(|piece| piece.components().to_vec()).collect();
        Ok(Self { coverage: Coverage::of(&pieces), components, top_tokens, tables })
    }

    /// A piece without the ablations that are here.
    pub(crate) fn rest(&self, piece: &Piece) -> Result<Piece> {
        let left = piece.ablations().iter().filter(|a| !self.coverage.has(a, &piece.outputs));
        let additions = piece.additions.clone();
        let additions = if self.compares_as_many(piece) { without_similarity(additions) } else { additions };
        Piece::new(left.copied().collect(), piece.outputs.clone(), additions)
    }

    /// Whether outputs of heads were compared on as many prompts as the piece does.
    fn compares_as_many(&self, piece: &Piece) -> bool {
        compared_prompts(self.coverage.additions()) >= compared_by(piece)
    }

    /// The rows of a computed file that the piece does not keep.
    pub(crate) fn leave(&self, table: &Table, open: &OpenPiece) -> Leave {
        let (piece, holds) = (&open.piece, &open.holds);
        // Without resampling there are no pairs, only a table without rows.
        if table.name == PAIRS.name && !piece.kinds().contains(&Kind::Resample) {
            return Leave::Everything;
        }
        if table.name == PAIRS.name || table.name == ROUNDING.name {
            return if self.tables.contains(table.name) { Leave::Everything } else { Leave::Nothing };
        }
        if is_of_additions(table) {
            let kept = holds.additions.as_ref().is_some_and(|a| table.name != HEAD_SIMILARITY.name || a.similarity);
            return if kept { Leave::Nothing } else { Leave::Everything };
        }
        let mut keys = BTreeSet::new();
        if table.name == TOP_TOKENS.name {
            let needed = |c: &Ablatable| holds.components().contains(c) || self.components.contains(c);
            let left = piece.components().iter().filter(|c| self.top_tokens.contains(&c.name()) || !needed(c));
            keys.extend(left.map(RowKey::of_component));
        }
        for ablation in piece.ablations().iter().filter(|a| !holds.ablations().contains(a)) {
            keys.extend(keys_of(table, ablation, &piece.outputs));
        }
        if keys.is_empty() { Leave::Nothing } else { Leave::Rows(keys) }
    }
}

/// Keys of an ablation's rows in a table, as far as it has those outputs.
pub(crate) fn keys_of(table: &Table, ablation: &Ablation, outputs: &Outputs) -> Vec<RowKey> {
    if is_of_neurons(table) {
        return outputs.neuron_layers.iter().map(|&layer| RowKey::of(ablation, Some(layer))).collect();
    }
    let has = match table.name {
        name if name == DISTRIBUTIONS.name => outputs.distribution,
        name => name != TOP_TOKENS.name && outputs.effects,
    };
    if has { vec![RowKey::of(ablation, None)] } else { vec![] }
}

/// The names in a file.
fn names_in(path: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for batch in parquet_batches(path, &["name".to_string()], 8192)? {
        let batch = batch?;
        let column = cast(batch.column(0), &DataType::Utf8)?;
        names.extend(column.as_string::<i32>().iter().flatten().map(str::to_string));
    }
    Ok(names)
}

/// The rows of a batch that are not about `keys`.
pub(crate) fn without(batch: &RecordBatch, keys: &BTreeSet<RowKey>) -> Result<RecordBatch> {
    match keys.is_empty() {
        true => Ok(batch.clone()),
        false => Ok(filter_record_batch(batch, &kept_rows(batch, keys)?)?),
    }
}

fn kept_rows(batch: &RecordBatch, keys: &BTreeSet<RowKey>) -> Result<BooleanArray> {
    let text = |column: &str| -> Result<Option<ArrayRef>> {
        batch.column_by_name(column).map(|c| Ok(cast(c, &DataType::Utf8)?)).transpose()
    };
    let (ablation, hold, name) = (text("ablation")?, text("hold")?, text("name")?.context("the table has no name")?);
    let layer = batch.column_by_name("neuron_layer").map(|c| cast(c, &DataType::Int64)).transpose()?;
    let at = |column: &ArrayRef, row: usize| column.as_string::<i32>().value(row).to_string();
    let (mut last, mut keeps) = (None, true);
    let mut rows = Vec::with_capacity(batch.num_rows());
    for row in 0..batch.num_rows() {
        let ablation = ablation.as_ref().zip(hold.as_ref()).map(|(a, h)| (at(a, row), at(h, row)));
        let neuron_layer = layer.as_ref().map(|l| l.as_primitive::<Int64Type>().value(row));
        let key = RowKey { ablation, name: at(&name, row), neuron_layer };
        // Rows of one key lie together.
        if last.as_ref() != Some(&key) {
            keeps = !keys.contains(&key);
            last = Some(key);
        }
        rows.push(keeps);
    }
    Ok(BooleanArray::from(rows))
}
