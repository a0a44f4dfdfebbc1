//! The lists of files that each stage wrote: `stages/<stage>.json` for a finished stage, `stages/<stage>.sha256` while
//! it runs. The names in them are checked here, for every reader.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::Value;

use crate::pieces::{self, PieceRecord};
use crate::run_folder::{Manifest, STAGES, Stage};
use crate::table_writer::{EMPTY_FILE, is_of_table};
use selfrepair_core::files::fingerprint;
use selfrepair_core::own_files::{self, is_plain};

impl Stage {
    /// Whether a file or folder of that name may be the stage's.
    fn owns(self, name: &str) -> bool {
        let folders: &[&str] = match self {
            Stage::Corpus | Stage::Analyze => &["tables"],
            Stage::Export => &["tables", "model"],
            Stage::Trace => &["tables", "work", "activations"],
            Stage::Ablate => &["tables", "sums", "work"],
            Stage::Report => &["report", "figures"],
        };
        name.split('/').next().is_some_and(|first| folders.contains(&first))
    }
}

/// `stages/<stage>.json`
pub fn manifest_name(stage: Stage) -> String {
    format!("stages/{}.json", stage.name())
}

/// `stages/<stage>.sha256`
pub fn ledger_name(stage: Stage) -> String {
    format!("stages/{}.sha256", stage.name())
}

/// A manifest of its text; none, if the text is not one. A stage whose manifest lists what it cannot have written is not
/// complete.
///
/// # Errors
/// If it lists a name that leads out of the run folder.
pub fn parse_manifest(stage: Stage, text: &str) -> Result<Option<Manifest>> {
    let Ok(mut manifest) = serde_json::from_str::<Manifest>(text) else { return Ok(None) };
    let record = manifest_name(stage);
    let is_ours = |name: &str| Ok::<bool, anyhow::Error>(is_plain(&record, name)? && stage.owns(name));
    let listed = manifest.files.len();
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    for file in manifest.files {
        if is_ours(&file.0)? {
            files.push(file);
        }
    }
    for folder in manifest.folders {
        if is_ours(&folder)? {
            folders.push(folder);
        }
    }
    let complete = manifest.complete && files.len() == listed;
    manifest = Manifest { files, folders, complete, ..manifest };
    Ok(Some(manifest))
}

/// Checksums of a ledger's text, by name. A line that is none, or speaks of what the stage cannot have written, counts as
/// none.
///
/// # Errors
/// If it lists a name that leads out of the run folder.
pub fn parse_ledger(stage: Stage, text: &str) -> Result<BTreeMap<String, String>> {
    let record = ledger_name(stage);
    let mut sums = BTreeMap::new();
    for (sha256, name) in text.lines().filter_map(sum_and_name) {
        if is_plain(&record, name)? && stage.owns(name) {
            sums.insert(name.to_string(), sha256.to_string());
        }
    }
    Ok(sums)
}

fn sum_and_name(line: &str) -> Option<(&str, &str)> {
    line.split_once("  ").filter(|(sum, _)| sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The records of a stage, even if `--fresh` has since marked it as not finished.
pub fn any_manifest(root: &Path, stage: Stage) -> Result<Option<Manifest>> {
    match own_files::read_record(&root.join(manifest_name(stage))) {
        Ok(bytes) => parse_manifest(stage, &String::from_utf8_lossy(&bytes)),
        Err(_) => Ok(None),
    }
}

/// The checksum of what a manifest lists of `ablate`. Numbers with a fraction count to nine digits, and the time not at
/// all: what is read back of a record may differ in the last digit.
///
/// # Errors
/// If it cannot be written as JSON.
pub(crate) fn checksum_of(pieces: &[PieceRecord], files: &[(String, u64)]) -> Result<String> {
    let told = |record: &PieceRecord| {
        let PieceRecord { number, piece, computed, rounding, seconds: _ } = record;
        Ok(rounded(serde_json::to_value((number, piece, computed, rounding))?))
    };
    let pieces: Vec<Value> = pieces.iter().map(told).collect::<Result<_>>()?;
    fingerprint(&(pieces, files))
}

fn rounded(value: Value) -> Value {
    match value {
        Value::Number(number) if number.is_f64() => {
            Value::String(format!("{:.8e}", number.as_f64().unwrap_or_default()))
        }
        Value::Array(items) => items.into_iter().map(rounded).collect(),
        Value::Object(fields) => fields.into_iter().map(|(key, value)| (key, rounded(value))).collect(),
        other => other,
    }
}

/// As [`any_manifest`], but only if its fingerprint is that of the parts it lists, and its checksum that of its pieces and
/// files: a changed byte shows.
///
/// # Errors
/// If it lists a name that leads out of the run folder.
pub fn sound_manifest(root: &Path, stage: Stage) -> Result<Option<Manifest>> {
    let is_sound = |m: &Manifest| {
        let checksum = |sum: &String| checksum_of(&m.pieces, &m.files).is_ok_and(|found| found == *sum);
        fingerprint(&m.parts).is_ok_and(|hash| hash == m.fingerprint) && m.checksum.as_ref().is_none_or(checksum)
    };
    Ok(any_manifest(root, stage)?.filter(is_sound))
}

/// The checksums that a stage has recorded. Empty if there are none, or they cannot be read.
pub fn ledger(root: &Path, stage: Stage) -> Result<BTreeMap<String, String>> {
    match own_files::read_record(&root.join(ledger_name(stage))) {
        Ok(bytes) => parse_ledger(stage, &String::from_utf8_lossy(&bytes)),
        Err(_) => Ok(BTreeMap::new()),
    }
}

/// Names of all files that a stage has recorded.
pub fn recorded(root: &Path, stage: Stage) -> Result<BTreeSet<String>> {
    let finished = any_manifest(root, stage)?.map(|m| m.files).unwrap_or_default();
    Ok(finished.into_iter().map(|file| file.0).chain(ledger(root, stage)?.into_keys()).collect())
}

/// Names of the files of pieces that are being computed.
pub fn work_of_pieces(root: &Path) -> Result<BTreeSet<String>> {
    let paths = own_files::walk(&root.join(pieces::WORK))?.into_iter();
    let names = paths.filter_map(|(path, _)| Some(path.strip_prefix(root).ok()?.to_str()?.to_string()));
    Ok(names.filter(|name| pieces::is_work(name)).collect())
}

/// Names of all files that a run has recorded.
pub fn recorded_by_all(root: &Path) -> Result<BTreeSet<String>> {
    let mut names = work_of_pieces(root)?;
    for stage in STAGES {
        names.extend(recorded(root, stage)?);
    }
    Ok(names)
}

/// Those of a stage's recorded files that lie in a folder now, sorted.
pub fn files_in(root: &Path, stage: Stage, folder: &Path) -> Result<Vec<PathBuf>> {
    let paths = recorded(root, stage)?.into_iter().map(|name| root.join(name));
    let mut paths: Vec<PathBuf> = paths.filter(|path| path.starts_with(folder) && own_files::is_file(path)).collect();
    paths.sort();
    Ok(paths)
}

/// Whether some of a stage's records are lost: it has no manifest, or its ledger has a line that is none.
fn are_damaged(root: &Path, stage: Stage) -> Result<bool> {
    if any_manifest(root, stage)?.is_none() {
        return Ok(true);
    }
    let bytes = own_files::read_record(&root.join(ledger_name(stage))).unwrap_or_default();
    Ok(String::from_utf8_lossy(&bytes).lines().any(|line| !line.is_empty() && sum_and_name(line).is_none()))
}

/// Whether a file says in its name and in its footer that this program wrote it. Asked only where records are damaged, so
/// that their loss costs time and nothing else.
fn is_table_file(root: &Path, name: &str) -> bool {
    let Some((table, file)) = name.strip_prefix("tables/").and_then(|rest| rest.split_once('/')) else { return false };
    let Some(stem) = file.strip_suffix(".parquet") else { return false };
    let is_shard = stem.len() >= 5 && stem.bytes().all(|b| b.is_ascii_digit());
    let is_ours = stem == table || file == EMPTY_FILE || is_shard || pieces::piece_of_file(file).is_some();
    is_ours && is_of_table(&root.join(name), table)
}

/// Files in folders of a stage that are not the run's.
pub fn foreign_in(root: &Path, stage: Stage, folders: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let (known, damaged) = (recorded_by_all(root)?, are_damaged(root, stage)?);
    own_files::foreign(root, folders, |name| known.contains(name) || damaged && is_table_file(root, name))
}

/// Files of a run folder that no record lists. Empty if the folder has no records.
pub fn foreign(root: &Path) -> Result<Vec<PathBuf>> {
    let known = recorded_by_all(root)?;
    if known.is_empty() {
        return Ok(Vec::new());
    }
    let folders = own_files::OWNED.iter().filter(|name| **name != "stages").map(|name| root.join(name));
    own_files::foreign(root, &folders.collect::<Vec<_>>(), |name| known.contains(name))
}

/// Names of a stage's files in its folders, to remove them.
pub fn to_remove(root: &Path, stage: Stage, folders: &[PathBuf]) -> Result<BTreeSet<String>> {
    let mut names = recorded(root, stage)?;
    if are_damaged(root, stage)? {
        for folder in folders {
            let found = own_files::walk(folder)?.into_iter().filter_map(|(path, _)| {
                Some(path.strip_prefix(root).ok()?.to_str()?.to_string()).filter(|name| is_table_file(root, name))
            });
            names.extend(found);
        }
    }
    Ok(names)
}

/// # Errors
/// If something in the run folder cannot be trusted: a link, a special file, or a record that names what lies elsewhere.
pub fn check(root: &Path) -> Result<()> {
    own_files::refuse_links(root)?;
    recorded_by_all(root).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn records_name_nothing_outside_the_run_folder() {
        let outside = ["/etc/passwd", "../victim", "tables/../../victim", "tables/tokens/.."];
        for stage in STAGES {
            for name in outside {
                let manifests = [
                    serde_json::json!({"fingerprint": "f", "complete": true, "files": [[name, 9]]}),
                    serde_json::json!({"fingerprint": "f", "complete": false, "files": [], "folders": [name]}),
                ];
                for text in manifests {
                    let error = parse_manifest(stage, &text.to_string()).err().unwrap().to_string();
                    assert!(error.contains(&format!("{}.json lists `{name}`", stage.name())), "{error}");
                }
                let error = parse_ledger(stage, &format!("{HASH}  {name}\n")).unwrap_err().to_string();
                assert!(error.contains(&format!("{}.sha256 lists `{name}`", stage.name())), "{error}");
            }
        }
    }

    #[test]
    fn a_checksum_is_that_of_what_is_read_back() {
        let text = |seconds: f64| {
            let piece = r#"{"ablations": [], "outputs": {"effects": false, "distribution": false, "neuron_layers": []},
                "additions": {"prompts": 2, "multiples": [0.1, 0.30000000000000004, 1e-7], "heads": []}}"#;
            let rounding = r#"{"onnxruntime": "1", "device": "cpu", "instructions": "avx2", "rows": 6}"#;
            format!(r#"{{"number": 1, "piece": {piece}, "rounding": {rounding}, "seconds": {seconds}}}"#)
        };
        let files = [("tables/pairs/00001.parquet".to_string(), 9)];
        for i in 0..1000 {
            let record: PieceRecord = serde_json::from_str(&text(f64::from(i) / 7.3)).unwrap();
            let again: PieceRecord = serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap();
            let sums = [record, again].map(|record| checksum_of(&[record], &files).unwrap());
            assert_eq!(sums[0], sums[1]);
        }
        let one: PieceRecord = serde_json::from_str(&text(1.0)).unwrap();
        let other: PieceRecord = serde_json::from_str(&text(1.0).replace("\"number\": 1", "\"number\": 2")).unwrap();
        assert_ne!(checksum_of(&[one], &files).unwrap(), checksum_of(&[other], &files).unwrap());
    }

    #[test]
    fn a_stage_owns_what_lies_in_its_own_folders() {
        let listed = |stage, names: &[&str]| {
            let files: Vec<_> = names.iter().map(|name| (name, 1)).collect();
            let text = serde_json::json!({"fingerprint": "f", "complete": true, "files": files, "folders": names});
            let manifest = parse_manifest(stage, &text.to_string()).unwrap().unwrap();
            let lines: String = names.iter().map(|name| format!("{HASH}  {name}\n")).collect();
            assert_eq!(parse_ledger(stage, &lines).unwrap().len(), manifest.files.len());
            assert_eq!(manifest.folders.len(), manifest.files.len());
            (manifest.files.len(), manifest.complete)
        };
        assert_eq!(listed(Stage::Report, &["report/index.html", "figures/a.svg"]), (2, true));
        assert_eq!(listed(Stage::Trace, &["tables/clean/0.parquet", "work/x", "activations/z/0.arrow"]), (3, true));
        assert_eq!(listed(Stage::Corpus, &["tables/tokens/x", "figures/mine.png"]), (1, false));
        assert_eq!(listed(Stage::Analyze, &["model/mine.bin", "notes.txt", "stages/x.json", ".lock", ""]), (0, false));
        assert!(parse_manifest(Stage::Corpus, "{").unwrap().is_none());
    }
}
