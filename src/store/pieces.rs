//! The pieces of `ablate`. A request for more becomes a piece of its own. While it is computed, it lies in
//! `work/ablate/NUMBER`: `plan.json` says what it is, and `done/` has a record for each finished shard or table. Once it
//! is complete, its files are renamed into `tables/`, and the manifest of the stage lists them. Readers see finished
//! pieces only. The plan and the records stay: should the manifest be lost, the piece is found again by them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use selfrepair_core::files::fingerprint;
use selfrepair_core::pieces::{Coverage, Piece, PieceText};
use selfrepair_core::tables::{CLEAN, DIRECT_EFFECTS, MEASURED, MODEL, TARGETS, TOKENS, Table};
use serde::{Deserialize, Serialize};

use crate::records;
use crate::run_folder::{Inputs, Manifest, Parts, Stage};
use crate::store::{Folder, Store};

/// The tables of pieces: all that are measured, but those of the stages before `ablate`.
pub fn tables() -> impl Iterator<Item = &'static Table> {
    const EARLIER: [&Table; 5] = [&TOKENS, &TARGETS, &MODEL, &CLEAN, &DIRECT_EFFECTS];
    MEASURED.into_iter().filter(|table| EARLIER.iter().all(|earlier| earlier.name != table.name))
}

/// The table of pieces with that name.
pub(crate) fn table(name: &str) -> Option<&'static Table> {
    tables().find(|table| table.name == name)
}

/// Where pieces lie while they are computed.
pub const WORK: &str = "work/ablate";

/// What can change how the numbers of a piece are rounded. It is the same for all of a piece.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rounding {
    /// Version of ONNX Runtime.
    pub onnxruntime: String,
    pub device: String,
    /// The widest vector instructions of the processor.
    pub instructions: String,
    /// Rows in a call of a graph.
    pub rows: usize,
    /// Whether all layers were in memory at once, or loaded in turn.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub all_layers: bool,
}

/// What earlier versions did. They wrote no such key, and the checksum of a record is of what is written.
fn yes() -> bool {
    true
}

fn is_yes(value: &bool) -> bool {
    *value
}

impl Rounding {
    /// What differs from `now`, but for rows and layers, which can be chosen: `device cpu → cuda`.
    pub fn differences(&self, now: &Rounding) -> Vec<String> {
        let parts = [
            ("onnxruntime", &self.onnxruntime, &now.onnxruntime),
            ("device", &self.device, &now.device),
            ("instructions", &self.instructions, &now.instructions),
        ];
        let differ = parts.into_iter().filter(|(_, was, is)| was != is);
        differ.map(|(what, was, is)| format!("{what} {was} → {is}")).collect()
    }
}

/// `work/ablate/NUMBER/plan.json`
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanRecord {
    /// Of the run's identity.
    fingerprint: String,
    /// What is computed.
    piece: PieceText,
    /// What is kept of it, where that is less: other pieces have the rest, or it was dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    holds: Option<PieceText>,
    rounding: Rounding,
}

/// A piece that is being computed, or was when its process ended.
#[derive(Clone)]
pub struct OpenPiece {
    pub number: usize,
    /// What is computed. Shards and fingerprints follow from it.
    pub piece: Piece,
    /// What is kept of it: all, unless other pieces have the rest, or it was dropped.
    pub holds: Piece,
    pub rounding: Rounding,
    /// What processes that share the run agreed on; empty for one alone.
    pub request: Parts,
    /// Of the run's identity.
    identity: String,
}

/// A finished piece, as the manifest of `ablate` lists it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PieceRecord {
    pub number: usize,
    /// What its files have.
    pub piece: PieceText,
    /// What was computed, where that is more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub computed: Option<PieceText>,
    pub rounding: Rounding,
    /// Seconds of computing; of several processes, those of the one that finished it.
    pub seconds: f64,
}

impl OpenPiece {
    /// The folder of a piece's work.
    pub fn folder(&self) -> String {
        folder(self.number)
    }

    /// Fingerprint of the run's identity.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// What the files of this piece are made from.
    pub fn fingerprint(&self) -> Result<String> {
        fingerprint(&(&self.identity, PieceText::from(&self.piece)))
    }

    fn write_plan(&self, root: &Path) -> Result<()> {
        let store = Folder::new(root);
        if !self.request.is_empty() {
            store.put(&request_name(self.number), serde_json::to_string_pretty(&self.request)?.as_bytes())?;
        }
        let name = plan_name(self.number);
        let created = store.create(&name, self.plan_text()?.as_bytes())?;
        ensure!(created, "{} was written by another process at the same time; run again", root.join(name).display());
        Ok(())
    }

    fn plan_text(&self) -> Result<String> {
        let record = PlanRecord {
            fingerprint: self.identity.clone(),
            piece: PieceText::from(&self.piece),
            holds: (self.holds != self.piece).then(|| PieceText::from(&self.holds)),
            rounding: self.rounding.clone(),
        };
        Ok(serde_json::to_string_pretty(&record)?)
    }

    /// The same piece, of which less is kept. Its plan says so before its files do.
    pub(crate) fn holding(&self, root: &Path, holds: Piece) -> Result<OpenPiece> {
        let changed = OpenPiece { holds, ..self.clone() };
        if changed.holds != self.holds {
            Folder::new(root).put(&plan_name(self.number), changed.plan_text()?.as_bytes())?;
        }
        Ok(changed)
    }

    /// The same piece, rounded otherwise. Nothing of it may be computed yet.
    ///
    /// # Errors
    /// If its plan cannot be written.
    pub fn rounded(self, root: &Path, rounding: Rounding) -> Result<OpenPiece> {
        if rounding == self.rounding {
            return Ok(self);
        }
        let changed = OpenPiece { rounding, ..self };
        Folder::new(root).put(&plan_name(changed.number), changed.plan_text()?.as_bytes())?;
        Ok(changed)
    }

    /// Its record, once it is finished.
    pub(crate) fn record(&self, seconds: f64) -> PieceRecord {
        let computed = (self.holds != self.piece).then(|| PieceText::from(&self.piece));
        let (number, rounding) = (self.number, self.rounding.clone());
        PieceRecord { number, piece: PieceText::from(&self.holds), computed, rounding, seconds }
    }
}

pub fn folder(number: usize) -> String {
    format!("{WORK}/{number:05}")
}

/// The finished pieces of a run, in the order in which they were begun.
///
/// # Errors
/// If a record is not one that this program writes.
pub fn finished(root: &Path) -> Result<Vec<(PieceRecord, Piece)>> {
    let records = records::sound_manifest(root, Stage::Ablate)?.map(|m| m.pieces).unwrap_or_default();
    let read = |record: PieceRecord| {
        let piece = Piece::try_from(&record.piece).context("stages/ablate.json lists a piece that cannot be read")?;
        Ok((record, piece))
    };
    records.into_iter().map(read).collect()
}

/// The manifest of `ablate` in a run of that identity; an empty one, if there is none or it is corrupt.
///
/// # Errors
/// If it lists a name that leads out of the run folder.
pub fn manifest_of(root: &Path, identity: &Inputs) -> Result<Manifest> {
    let manifest = records::sound_manifest(root, Stage::Ablate)?;
    Ok(manifest.filter(|m| m.fingerprint == identity.fingerprint).unwrap_or_default())
}

/// What the finished pieces of a run have measured.
///
/// # Errors
/// As [`finished`].
pub fn coverage(root: &Path) -> Result<Coverage> {
    let finished = finished(root)?;
    Ok(Coverage::of(finished.iter().map(|(_, piece)| piece)))
}

/// Pieces that were begun and not finished, and belong to the run of that identity. A plan that cannot be read counts as
/// none: what it spoke of is computed again.
///
/// # Errors
/// If the folder cannot be read.
pub fn open(root: &Path, identity: &str) -> Result<Vec<OpenPiece>> {
    let finished: Vec<usize> = finished(root)?.into_iter().map(|(record, _)| record.number).collect();
    let numbers = numbers(root)?.into_iter().filter(|number| !finished.contains(number));
    Ok(numbers.filter_map(|number| read_plan(root, number)).filter(|open| open.identity == identity).collect())
}

/// A finished piece, to be computed again as far as its files are lost.
///
/// # Errors
/// If its record is not one that this program writes.
pub fn again(identity: &str, record: PieceRecord, holds: Piece) -> Result<OpenPiece> {
    let PieceRecord { number, computed, rounding, .. } = record;
    let piece = computed.as_ref().map_or(Ok(holds.clone()), Piece::try_from)?;
    Ok(OpenPiece { number, piece, holds, rounding, request: Parts::new(), identity: identity.to_string() })
}

fn read_plan(root: &Path, number: usize) -> Option<OpenPiece> {
    let store = Folder::new(root);
    let bytes = store.get(&plan_name(number)).ok()??;
    let PlanRecord { fingerprint, piece, holds, rounding } = serde_json::from_slice(&bytes).ok()?;
    let request = store.get(&request_name(number)).ok()?;
    let request = request.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    let piece = Piece::try_from(&piece).ok()?;
    let holds = holds.as_ref().map_or(Some(piece.clone()), |holds| Piece::try_from(holds).ok())?;
    Some(OpenPiece { number, piece, holds, rounding, request, identity: fingerprint })
}

fn plan_name(number: usize) -> String {
    format!("{}/plan.json", folder(number))
}

fn request_name(number: usize) -> String {
    format!("{}/request.json", folder(number))
}

/// Numbers of the folders of pieces.
pub fn numbers(root: &Path) -> Result<Vec<usize>> {
    let names = Folder::new(root).list(WORK)?;
    let number = |name: &String| parse_number(name.strip_prefix(WORK)?.strip_prefix('/')?.split('/').next()?);
    let mut numbers: Vec<usize> = names.iter().filter_map(number).collect();
    numbers.dedup();
    Ok(numbers)
}

fn parse_number(text: &str) -> Option<usize> {
    (text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

/// Plans a piece under the next free number.
///
/// # Errors
/// If another process did so at the same time, or the plan cannot be written.
pub fn plan(root: &Path, identity: &str, piece: Piece, rounding: Rounding, request: &Parts) -> Result<OpenPiece> {
    let open = OpenPiece {
        number: next_number(root)?,
        holds: piece.clone(),
        piece,
        rounding,
        request: request.clone(),
        identity: identity.to_string(),
    };
    open.write_plan(root)?;
    Ok(open)
}

/// What is left of a finished piece, as one with a number of its own.
///
/// # Errors
/// As [`plan`].
pub(crate) fn plan_rest(root: &Path, identity: &str, record: &PieceRecord, rest: Piece) -> Result<OpenPiece> {
    let whole = again(identity, record.clone(), Piece::try_from(&record.piece)?)?;
    let open = OpenPiece { number: next_number(root)?, holds: rest, ..whole };
    open.write_plan(root)?;
    Ok(open)
}

/// A number that no piece has.
fn next_number(root: &Path) -> Result<usize> {
    let finished = finished(root)?.into_iter().map(|(record, _)| record.number);
    Ok(finished.chain(numbers(root)?).max().map_or(1, |last| last + 1))
}

/// The number of the piece to which a file of a table belongs, by its name: `00002.parquet`, `00002-00013.parquet`.
pub fn piece_of_file(file: &str) -> Option<usize> {
    let stem = file.strip_suffix(".parquet")?;
    match stem.split_once('-') {
        Some((number, shard)) => parse_number(shard).and(parse_number(number)),
        None => parse_number(stem),
    }
}

/// Whether this program could have written a file of that name for a piece that is being computed.
pub fn is_work(name: &str) -> bool {
    let Some((number, rest)) = name.strip_prefix(WORK).and_then(|n| n.strip_prefix('/')?.split_once('/')) else {
        return false;
    };
    let is_ours = match rest.split_once('/') {
        None => rest == "plan.json" || rest == "request.json",
        Some(("done", file)) => file.ends_with(".json") && !file.contains('/'),
        Some(("sums", file)) => (file.ends_with(".sums") || file.ends_with(".arrow")) && !file.contains('/'),
        Some((folder, file)) => table(folder).is_some() && file.ends_with(".parquet") && !file.contains('/'),
    };
    parse_number(number).is_some() && is_ours
}

/// How many shards of a piece are done.
///
/// # Errors
/// As [`open`].
pub fn done_shards(root: &Path, open: &OpenPiece) -> Result<usize> {
    let names = Folder::new(root).list(&format!("{}/done", open.folder()))?;
    let is_shard =
        |name: &&String| name.rsplit('/').next().is_some_and(|f| parse_number(f.trim_end_matches(".json")).is_some());
    Ok(names.iter().filter(is_shard).count())
}

/// Files of a piece by table, as the names in a manifest.
pub fn files_of(files: &[(String, u64)], number: usize) -> Vec<(String, u64)> {
    let of_piece = |(name, _): &&(String, u64)| {
        let file = name.strip_prefix("tables/").and_then(|rest| rest.split_once('/')).map(|(_, file)| file);
        file.and_then(piece_of_file) == Some(number)
    };
    files.iter().filter(of_piece).cloned().collect()
}

/// A file of a piece: its table, its shard, its bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    pub table: String,
    /// `None` for a table that is one file.
    pub shard: Option<usize>,
    pub size: u64,
    pub sha256: String,
}

impl FileRecord {
    /// Its name in the folder of the table, while the piece is computed.
    pub fn work_name(&self) -> String {
        match self.shard {
            Some(shard) => format!("{}/{shard:05}.parquet", self.table),
            None => format!("{}/{}.parquet", self.table, self.table),
        }
    }

    /// Its name below the run folder, once the piece is finished.
    pub fn name(&self, number: usize) -> String {
        match self.shard {
            Some(shard) => format!("tables/{}/{number:05}-{shard:05}.parquet", self.table),
            None => format!("tables/{}/{number:05}.parquet", self.table),
        }
    }
}

/// `work/ablate/NUMBER/done/SHARD.json` or `…/TABLE.json`: everything of a shard, or of a table that is one file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DoneRecord {
    pub files: Vec<FileRecord>,
    /// Checksums of what is kept until the piece is finished, by name.
    #[serde(default)]
    pub kept: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rounding_of_an_earlier_version_is_written_as_it_was() {
        let text = r#"{"onnxruntime":"1","device":"cpu","instructions":"avx2","rows":6}"#;
        let mut rounding: Rounding = serde_json::from_str(text).unwrap();
        assert!(rounding.all_layers);
        assert_eq!(serde_json::to_string(&rounding).unwrap(), text);
        rounding.all_layers = false;
        let again: Rounding = serde_json::from_str(&serde_json::to_string(&rounding).unwrap()).unwrap();
        assert_eq!(again, rounding);
    }

    #[test]
    fn names_of_files_tell_their_piece() {
        assert_eq!(piece_of_file("00002.parquet"), Some(2));
        assert_eq!(piece_of_file("00012-00003.parquet"), Some(12));
        for other in [
            "2.parquet",
            "00002 (copy).parquet",
            "00002-3.parquet",
            "00002.arrow",
            "tokens.parquet",
            "00002-00003-00004.parquet",
        ] {
            assert_eq!(piece_of_file(other), None, "{other}");
        }
        let ours = ["plan.json", "done/00001.json", "done/pairs.json", "ablations/00000.parquet", "sums/1-of-1.sums"];
        assert!(ours.iter().all(|name| is_work(&format!("work/ablate/00001/{name}"))));
        let others = [
            "work/ablate/00001/notes.txt",
            "work/ablate/1/plan.json",
            "work/ablate/00001/done/a/b.json",
            "work/ablate/00001/tokens/00000.parquet",
            "work/sums-00000.f64",
        ];
        assert!(others.iter().all(|name| !is_work(name)));
    }
}
