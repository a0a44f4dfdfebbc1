//! The folder of one run: where each stage's files lie, whether they are current, and who holds the folder.
//!
//! A stage is current when its manifest names the fingerprint of everything it depends on and every file it listed is
//! still there with its size. What was written under another fingerprint is removed before anything runs, so tables of
//! two configurations are never mixed. A folder that has such sub-folders without being a run is refused, not cleared.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use selfrepair_core::files::{files_below, remove_temporary_files, write_atomically};
use selfrepair_core::progress;
use crate::checksums::{self, Ledger};
use crate::sharing::Lock;
use selfrepair_core::shards::ShardSet;

/// The stages in the order in which they depend on each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Corpus,
    Export,
    Trace,
    Ablate,
    Analyze,
    Report,
}

pub const STAGES: [Stage; 6] =
    [Stage::Corpus, Stage::Export, Stage::Trace, Stage::Ablate, Stage::Analyze, Stage::Report];

impl Stage {
    pub fn name(self) -> &'static str {
        match self {
            Stage::Corpus => "corpus",
            Stage::Export => "export",
            Stage::Trace => "trace",
            Stage::Ablate => "ablate",
            Stage::Analyze => "analyze",
            Stage::Report => "report",
        }
    }
}

/// What a fingerprint was made of, by name.
pub type Parts = BTreeMap<String, String>;

/// What `<out>/stages/<stage>.json` holds.
#[derive(Default, Serialize, Deserialize)]
pub struct Manifest {
    pub fingerprint: String,
    pub complete: bool,
    /// Path under the run folder and size in bytes of every file the stage wrote.
    pub files: Vec<(String, u64)>,
    /// Folders the stage writes into, under the run folder.
    #[serde(default)]
    pub folders: Vec<String>,
    /// What the fingerprint was made of, to say why another one differs.
    #[serde(default)]
    pub parts: Parts,
    /// When it began (the last time, if it was resumed) and finished, in seconds since 1970.
    #[serde(default)]
    pub began: Option<u64>,
    #[serde(default)]
    pub finished: Option<u64>,
    /// From then to then.
    #[serde(default)]
    pub seconds: Option<f64>,
    /// What a reader of the results must know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Marks a folder as a run's, whose sub-folders may be cleared.
const MARKER: &str = ".self-repair-run";

/// Everything a run writes lies in these.
const OWNED: [&str; 8] = ["tables", "stages", "model", "work", "sums", "activations", "report", "figures"];

pub struct RunFolder {
    root: PathBuf,
    /// Hash of the inputs and of the configuration without `[runtime]`, written into every table.
    pub run_id: String,
    /// What each stage's fingerprint is made of, for its manifest.
    parts: [Parts; 6],
    /// Checksums of what each stage wrote.
    ledgers: [Arc<Ledger>; 6],
    /// When the stage at work began.
    began: Mutex<Option<Instant>>,
    /// What the stage at work has to say to a reader of its results.
    warnings: Mutex<Vec<String>>,
    pub lock: Lock,
}

impl RunFolder {
    /// Creates the folder if needed and takes it, or a set of its shards, for this process.
    ///
    /// # Errors
    /// If the folder has a sub-folder of a run's names but is none, or an input lies in one of them: clearing it would
    /// destroy what is not ours.
    pub fn open(root: &Path, run_id: String, inputs: &[PathBuf], set: Option<ShardSet>) -> Result<Self> {
        refuse_what_is_not_ours(root, inputs)?;
        let created =
            |folder: &Path| fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()));
        created(root)?;
        // Before the folders: one that has them is a run's, whatever happens now.
        if !is_run(root) {
            let path = root.join(MARKER);
            let marked = fs::write(&path, "A run of `pipeline`. Its sub-folders are rewritten by the next run.\n");
            marked.with_context(|| format!("cannot write {}", path.display()))?;
        }
        created(&root.join("tables"))?;
        created(&root.join("stages"))?;
        let lock = match set {
            None => Lock::alone(root)?,
            Some(set) => Lock::of_set(root, set)?,
        };
        let ledgers = STAGES.map(|stage| Arc::new(Ledger::open(root, stage)));
        let (parts, began, warnings) = Default::default();
        Ok(Self { root: root.to_path_buf(), run_id, parts, ledgers, began, warnings, lock })
    }

    /// Has manifests say what the stages' fingerprints are made of.
    pub fn with_parts(self, parts: [Parts; 6]) -> Self {
        Self { parts, ..self }
    }

    /// What a stage's fingerprint is made of.
    pub fn parts(&self, stage: Stage) -> &Parts {
        &self.parts[stage as usize]
    }

    /// Reads what other processes have recorded meanwhile.
    pub fn reload(&self) {
        self.ledgers.iter().for_each(|ledger| ledger.reload());
    }

    /// Checksums of what a stage wrote so far.
    pub fn ledger(&self, stage: Stage) -> &Arc<Ledger> {
        &self.ledgers[stage as usize]
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `<out>/tables/<name>`, the folder of a table's Parquet files.
    pub fn table(&self, name: &str) -> PathBuf {
        self.root.join("tables").join(name)
    }

    /// Folder of the ONNX graphs.
    pub fn model(&self) -> PathBuf {
        self.root.join("model")
    }

    /// Folder of what later stages need but nobody queries.
    pub fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    /// Folder of sums over the corpus while `ablate` runs.
    pub fn sums(&self) -> PathBuf {
        self.root.join("sums")
    }

    /// Folder of opt-in raw activations.
    pub fn activations(&self) -> PathBuf {
        self.root.join("activations")
    }

    fn manifest_path(&self, stage: Stage) -> PathBuf {
        self.root.join("stages").join(format!("{}.json", stage.name()))
    }

    fn manifest(&self, stage: Stage) -> Option<Manifest> {
        manifest(&self.root, stage)
    }

    /// Whether the stage was finished under this fingerprint and its files are still whole.
    pub fn is_current(&self, stage: Stage, fingerprint: &str) -> bool {
        let whole = |(file, size): &(String, u64)| fs::metadata(self.root.join(file)).is_ok_and(|m| m.len() == *size);
        self.manifest(stage).is_some_and(|m| m.complete && m.fingerprint == fingerprint && m.files.iter().all(whole))
    }

    /// Files of a finished stage that are not what was written. All of them are read.
    pub fn damaged(&self, stage: Stage) -> Vec<PathBuf> {
        let files = self.manifest(stage).map(|m| m.files).unwrap_or_default();
        checksums::damaged(&self.root, stage, &files).into_iter().map(|file| self.root.join(file)).collect()
    }

    /// Whether the stage has begun under this fingerprint.
    pub fn has_begun(&self, stage: Stage, fingerprint: &str) -> bool {
        self.manifest(stage).is_some_and(|m| m.fingerprint == fingerprint)
    }

    /// Whether the stage left something under another fingerprint than this one.
    pub fn is_stale(&self, stage: Stage, fingerprint: &str) -> bool {
        self.manifest(stage).is_some_and(|m| m.fingerprint != fingerprint)
    }

    /// Removes what a stage wrote, also into folders that it no longer has.
    pub fn clear(&self, stage: Stage, folders: &[PathBuf]) -> Result<()> {
        let before = self.manifest(stage).map(|m| m.folders).unwrap_or_default();
        let before = before.iter().filter(|f| OWNED.iter().any(|o| Path::new(f).starts_with(o)) && !f.contains(".."));
        let mut folders = folders.to_vec();
        folders.extend(before.map(|f| self.root.join(f)));
        for folder in folders.iter().filter(|f| f.exists()) {
            fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        self.ledger(stage).clear()?;
        fs::remove_file(self.manifest_path(stage))
            .with_context(|| format!("cannot remove the manifest of {}", stage.name()))
    }

    /// Begins (or resumes) a stage that writes into `folders`, removing what another fingerprint left there.
    pub fn begin(&self, stage: Stage, fingerprint: &str, folders: &[PathBuf]) -> Result<()> {
        let resumes = self.has_begun(stage, fingerprint);
        if !resumes {
            self.ledger(stage).clear()?;
        }
        for folder in folders {
            if !resumes && folder.exists() {
                fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
            }
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
            remove_temporary_files(folder)?;
        }
        *self.began.lock().unwrap_or_else(|e| e.into_inner()) = Some(Instant::now());
        self.warnings.lock().unwrap_or_else(|e| e.into_inner()).clear();
        self.write_manifest(stage, &Manifest { began: now(), ..self.new_manifest(stage, fingerprint, folders) })
    }

    fn new_manifest(&self, stage: Stage, fingerprint: &str, folders: &[PathBuf]) -> Manifest {
        let folders = folders.iter().map(|f| self.relative(f)).collect();
        Manifest {
            fingerprint: fingerprint.into(),
            folders,
            parts: self.parts[stage as usize].clone(),
            ..Manifest::default()
        }
    }

    /// A path under the run folder, without the folder.
    fn relative(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).to_string_lossy().into_owned()
    }

    /// Marks the stage finished, with every file that lies in `folders`.
    pub fn finish(&self, stage: Stage, fingerprint: &str, folders: &[PathBuf]) -> Result<()> {
        let mut files = Vec::new();
        for folder in folders {
            files.extend(files_below(folder)?);
        }
        files.sort();
        self.ledger(stage).seal(&files)?;
        let sized = |path: &PathBuf| Ok((self.relative(path), fs::metadata(path)?.len()));
        let files = files.iter().map(sized).collect::<Result<_>>()?;
        let seconds =
            self.began.lock().unwrap_or_else(|e| e.into_inner()).take().map(|began| began.elapsed().as_secs_f64());
        let began = self.manifest(stage).and_then(|m| m.began);
        let warnings = std::mem::take(&mut *self.warnings.lock().unwrap_or_else(|e| e.into_inner()));
        let manifest = self.new_manifest(stage, fingerprint, folders);
        let finished = Manifest { complete: true, files, began, finished: now(), seconds, warnings, ..manifest };
        self.write_manifest(stage, &finished)
    }

    /// Tells the user at once, and keeps it for `status` and the summary: the stage at work goes on, but its results may
    /// not mean what they seem to.
    pub fn warn(&self, warning: String) {
        progress::line("warning", &warning);
        self.warnings.lock().unwrap_or_else(|e| e.into_inner()).push(warning);
    }

    /// Forgets that stages were finished, so that they run anew (`--fresh`).
    pub fn forget(&self) -> Result<()> {
        for stage in STAGES {
            let path = self.manifest_path(stage);
            if path.exists() {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    fn write_manifest(&self, stage: Stage, manifest: &Manifest) -> Result<()> {
        write_atomically(&self.manifest_path(stage), serde_json::to_string_pretty(manifest)?.as_bytes())
    }
}

/// Whether a folder is a run's.
pub fn is_run(root: &Path) -> bool {
    root.join(MARKER).exists()
}

fn refuse_what_is_not_ours(root: &Path, inputs: &[PathBuf]) -> Result<()> {
    if !is_run(root)
        && let Some(name) = OWNED.iter().find(|name| root.join(name).exists())
        // Another process may have begun the run between the two looks.
        && !is_run(root)
    {
        bail!(
            "{} holds `{name}` but is no run of this program, which would clear it; choose another --out",
            root.display()
        );
    }
    for input in inputs {
        let Ok(input) = input.canonicalize() else { continue };
        let owner =
            OWNED.iter().find(|name| root.join(name).canonicalize().is_ok_and(|owned| input.starts_with(owned)));
        if let Some(name) = owner {
            bail!(
                "{} lies in `{name}` of {}, which the run clears; move it elsewhere",
                input.display(),
                root.display()
            );
        }
    }
    Ok(())
}

/// What a stage of the run in this folder has recorded of itself, if it has begun.
pub fn manifest(root: &Path, stage: Stage) -> Option<Manifest> {
    let path = root.join("stages").join(format!("{}.json", stage.name()));
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
}

/// What the finished stages of a run warned of, in their order.
pub fn warnings(root: &Path) -> Vec<String> {
    STAGES.iter().filter_map(|&stage| manifest(root, stage)).flat_map(|m| m.warnings).collect()
}

/// Seconds since 1970.
fn now() -> Option<u64> {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok().map(|d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_current_until_its_fingerprint_or_a_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunFolder::open(dir.path(), "id".into(), &[], None).unwrap();
        let folders = [run.table("tokens")];
        run.begin(Stage::Corpus, "a", &folders).unwrap();
        assert!(!run.is_current(Stage::Corpus, "a"));
        let file = folders[0].join("0.parquet");
        fs::write(&file, "12345").unwrap();
        run.finish(Stage::Corpus, "a", &folders).unwrap();
        assert!(run.is_current(Stage::Corpus, "a") && !run.is_current(Stage::Corpus, "b"));
        fs::write(&file, "123").unwrap();
        assert!(!run.is_current(Stage::Corpus, "a"));
    }

    #[test]
    fn another_fingerprint_removes_the_old_files_and_the_same_one_keeps_them() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunFolder::open(dir.path(), "id".into(), &[], None).unwrap();
        let folders = [run.table("ablations")];
        run.begin(Stage::Ablate, "a", &folders).unwrap();
        fs::write(folders[0].join("0.parquet"), "whole").unwrap();
        fs::write(folders[0].join("1.parquet.partial"), "half").unwrap();
        run.begin(Stage::Ablate, "a", &folders).unwrap();
        assert_eq!(files_below(&folders[0]).unwrap().len(), 1);
        run.begin(Stage::Ablate, "b", &folders).unwrap();
        assert_eq!(files_below(&folders[0]).unwrap().len(), 0);
    }

    #[test]
    fn a_folder_that_is_no_run_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("model");
        fs::create_dir(&model).unwrap();
        fs::write(model.join("model.safetensors"), "weights").unwrap();
        let error = RunFolder::open(dir.path(), "id".into(), &[], None).err().unwrap().to_string();
        assert!(error.contains("holds `model` but is no run"), "{error}");
        assert!(model.join("model.safetensors").exists());
    }

    #[test]
    fn an_input_inside_the_run_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        drop(RunFolder::open(dir.path(), "id".into(), &[], None).unwrap());
        let input = dir.path().join("tables/corpus.txt");
        fs::write(&input, "text").unwrap();
        let error =
            RunFolder::open(dir.path(), "id".into(), std::slice::from_ref(&input), None).err().unwrap().to_string();
        assert!(error.contains("lies in `tables`") && input.exists(), "{error}");
    }

    #[test]
    fn a_second_run_into_the_same_folder_is_refused_and_names_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let _first = RunFolder::open(dir.path(), "id".into(), &[], None).unwrap();
        let error = RunFolder::open(dir.path(), "id".into(), &[], None).err().unwrap().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
    }
}
