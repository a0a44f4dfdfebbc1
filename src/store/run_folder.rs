//! The folder of one run: the files of each stage, whether they are current, and locks.
//!
//! A stage is current when its manifest has the fingerprint of everything it depends on, and every listed file exists
//! with its size. `ablate` grows by pieces (see `pieces`). Only files that the records list are removed. A stage that has
//! to run is refused while foreign files lie in its folders. A folder that has such sub-folders and is not a run is
//! refused too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use selfrepair_core::files::{fingerprint, write_atomically};
use selfrepair_core::own_files::{self, MARKER, OWNED};
use selfrepair_core::progress;

use crate::checksums::{self, Ledger};
use crate::locks::Lock;
use crate::pieces::PieceRecord;
use crate::records;
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

/// The inputs of a fingerprint, by name.
pub type Parts = BTreeMap<String, String>;

/// What a stage's files are made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inputs {
    /// By name, to say why other inputs differ.
    pub parts: Parts,
    /// Hash of the parts.
    pub fingerprint: String,
}

impl Inputs {
    /// # Errors
    /// If the parts cannot be written as JSON.
    pub fn of(parts: Parts) -> Result<Self> {
        let fingerprint = fingerprint(&parts)?;
        Ok(Self { parts, fingerprint })
    }
}

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
    /// Seconds between the two.
    #[serde(default)]
    pub seconds: Option<f64>,
    /// Warnings for readers of the results.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Of `ablate`: its finished pieces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pieces: Vec<PieceRecord>,
    /// Of `ablate`: of its pieces and files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<String>,
}

pub struct RunFolder {
    root: PathBuf,
    /// Hash of the inputs and of the configuration without `[runtime]`, written into every table.
    pub run_id: String,
    /// Checksums of what each stage wrote.
    ledgers: [Arc<Ledger>; 6],
    /// When the current stage started.
    began: Mutex<Option<Instant>>,
    /// Warnings of the current stage.
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
        check(root)?;
        refuse_foreign_folder(root, inputs)?;
        let created =
            |folder: &Path| fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()));
        created(root)?;
        // Before the folders: one that has them is a run's, whatever happens now.
        if !is_run(root) {
            mark(&root.join(MARKER))?;
        }
        created(&root.join("tables"))?;
        created(&root.join("stages"))?;
        let lock = match set {
            None => Lock::alone(root)?,
            Some(set) => Lock::of_set(root, set)?,
        };
        let ledgers = STAGES.map(|stage| Arc::new(Ledger::open(root, stage)));
        let (began, warnings) = Default::default();
        Ok(Self { root: root.to_path_buf(), run_id, ledgers, began, warnings, lock })
    }

    /// Reads what other processes have recorded meanwhile.
    pub fn reload(&self) {
        self.ledgers.iter().for_each(|ledger| ledger.reload());
    }

    /// Checksums of what a stage wrote so far.
    #[expect(clippy::indexing_slicing, reason = "there is one for each stage")]
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

    /// Folder of opt-in raw activations.
    pub fn activations(&self) -> PathBuf {
        self.root.join("activations")
    }

    fn manifest_path(&self, stage: Stage) -> PathBuf {
        self.root.join(records::manifest_name(stage))
    }

    fn manifest(&self, stage: Stage) -> Option<Manifest> {
        manifest(&self.root, stage)
    }

    /// Whether the stage was finished under this fingerprint and its files are still whole.
    pub fn is_current(&self, stage: Stage, fingerprint: &str) -> bool {
        let whole = |file: &(String, u64)| has_size(&self.root, file);
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

    /// Begins (or resumes) a stage that writes into `folders`, removing what another fingerprint left there. The tables of
    /// `analyze` stay until each is replaced.
    ///
    /// # Errors
    /// If files lie there that no record lists. Then nothing is removed.
    pub fn begin(&self, stage: Stage, inputs: &Inputs, folders: &[PathBuf]) -> Result<()> {
        self.refuse_foreign(stage, folders)?;
        let fingerprint = &inputs.fingerprint;
        let keeps =
            stage == Stage::Analyze || self.has_begun(stage, fingerprint) || self.has_lost_record(stage, fingerprint);
        if !keeps {
            self.remove(stage, folders)?;
        }
        for folder in folders {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
            own_files::remove_temporary(folder)?;
        }
        own_files::remove_temporary(&self.root.join("stages"))?;
        *self.began.lock().unwrap_or_else(|e| e.into_inner()) = Some(Instant::now());
        self.warnings.lock().unwrap_or_else(|e| e.into_inner()).clear();
        // What was finished before is still the stage's.
        let files = records::any_manifest(&self.root, stage)?.filter(|_| keeps).map(|m| m.files).unwrap_or_default();
        let folders = if keeps { self.with_earlier(stage, folders)? } else { folders.to_vec() };
        self.write_manifest(stage, &Manifest { began: now(), files, ..self.new_manifest(inputs, &folders) })
    }

    /// Whether the record of the clean pass is lost or corrupt, but another stage's says that the folder is bound to this fingerprint.
    /// Then what the clean pass wrote, activations too, is of this run.
    fn has_lost_record(&self, stage: Stage, fingerprint: &str) -> bool {
        let others = [Stage::Corpus, Stage::Export, Stage::Ablate];
        let is_bound = || others.into_iter().any(|other| self.has_begun(other, fingerprint));
        stage == Stage::Trace && self.manifest(stage).is_none() && is_bound()
    }

    /// Removes the files that a stage has recorded, and its folders if nothing else is in them.
    fn remove(&self, stage: Stage, folders: &[PathBuf]) -> Result<()> {
        let folders = self.with_earlier(stage, folders)?;
        folders.iter().try_for_each(|folder| own_files::remove_temporary(folder))?;
        own_files::remove_files(&self.root, &records::to_remove(&self.root, stage, &folders)?)?;
        folders.iter().for_each(|folder| own_files::remove_empty(&self.root, folder));
        self.ledger(stage).clear()
    }

    /// `folders`, and those that the stage wrote into before.
    fn with_earlier(&self, stage: Stage, folders: &[PathBuf]) -> Result<Vec<PathBuf>> {
        let before = records::any_manifest(&self.root, stage)?.map(|m| m.folders).unwrap_or_default();
        let before = before.iter().map(|folder| self.root.join(folder)).filter(|folder| !folders.contains(folder));
        Ok(folders.iter().cloned().chain(before).collect())
    }

    /// Files in a stage's folders that are not the run's.
    pub fn foreign(&self, stage: Stage, folders: &[PathBuf]) -> Result<Vec<PathBuf>> {
        records::foreign_in(&self.root, stage, &self.with_earlier(stage, folders)?)
    }

    /// # Errors
    /// If a stage would write where there are links, or files that no record lists.
    pub fn refuse_foreign(&self, stage: Stage, folders: &[PathBuf]) -> Result<()> {
        own_files::refuse_links(&self.root)?;
        let foreign = self.foreign(stage, folders)?;
        let Some(first) = foreign.first() else { return Ok(()) };
        let more = if foreign.len() > 1 { format!(" (and {} more)", foreign.len() - 1) } else { String::new() };
        bail!(
            "{}{more} was not written by this run, and the stage {} writes into that folder: move it elsewhere or choose \
             another --out; nothing was removed",
            first.display(),
            stage.name()
        )
    }

    /// # Errors
    /// If files that no record lists lie in any stage's folders.
    pub fn refuse_foreign_everywhere(&self) -> Result<()> {
        STAGES.into_iter().try_for_each(|stage| self.refuse_foreign(stage, &[]))
    }

    /// Files that a stage has recorded, as far as they lie in a folder.
    pub fn files_in(&self, stage: Stage, folder: &Path) -> Result<Vec<PathBuf>> {
        records::files_in(&self.root, stage, folder)
    }

    pub(crate) fn new_manifest(&self, inputs: &Inputs, folders: &[PathBuf]) -> Manifest {
        let folders = folders.iter().map(|f| self.relative(f)).collect();
        let Inputs { parts, fingerprint } = inputs.clone();
        Manifest { fingerprint, folders, parts, ..Manifest::default() }
    }

    /// A path under the run folder, without the folder.
    fn relative(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).to_string_lossy().into_owned()
    }

    /// Marks the stage finished, with every file in `folders` that it has recorded.
    pub fn finish(&self, stage: Stage, inputs: &Inputs, folders: &[PathBuf]) -> Result<()> {
        let folders = &self.with_earlier(stage, folders)?[..];
        let mut files = Vec::new();
        for folder in folders {
            files.extend(self.files_in(stage, folder)?);
        }
        files.sort();
        files.dedup();
        for path in self.foreign(stage, folders)? {
            progress::line("warning", &format!("{} was not written by this run and is left out", path.display()));
        }
        self.ledger(stage).seal(&files)?;
        let sized = |path: &PathBuf| Ok((self.relative(path), fs::metadata(path)?.len()));
        let files = files.iter().map(sized).collect::<Result<_>>()?;
        let seconds =
            self.began.lock().unwrap_or_else(|e| e.into_inner()).take().map(|began| began.elapsed().as_secs_f64());
        let began = self.manifest(stage).and_then(|m| m.began);
        let warnings = std::mem::take(&mut *self.warnings.lock().unwrap_or_else(|e| e.into_inner()));
        let manifest = self.new_manifest(inputs, folders);
        let finished = Manifest { complete: true, files, began, finished: now(), seconds, warnings, ..manifest };
        self.write_manifest(stage, &finished)
    }

    /// Tells the user at once, and keeps it for `status` and the summary: the running stage goes on, but its results may
    /// not mean what they seem to.
    pub fn warn(&self, warning: String) {
        progress::line("warning", &warning);
        self.warnings.lock().unwrap_or_else(|e| e.into_inner()).push(warning);
    }

    /// The warnings of a stage: those that its manifest has, and those since then.
    pub(crate) fn warnings_so_far(&self, stage: Stage) -> Result<Vec<String>> {
        let mut warnings = records::any_manifest(&self.root, stage)?.map(|m| m.warnings).unwrap_or_default();
        warnings.extend(std::mem::take(&mut *self.warnings.lock().unwrap_or_else(|e| e.into_inner())));
        warnings.dedup();
        Ok(warnings)
    }

    /// Removes everything that the run has recorded, the last stage first (`--fresh`, `--replace`).
    ///
    /// # Errors
    /// If files lie in its folders that no record lists. Then nothing is removed.
    pub fn remove_all(&self) -> Result<()> {
        self.refuse_foreign_everywhere()?;
        for stage in STAGES.into_iter().rev() {
            if stage == Stage::Ablate {
                own_files::remove_files(&self.root, &records::work_of_pieces(&self.root)?)?;
            }
            self.remove(stage, &[])?;
            let manifest = BTreeSet::from([records::manifest_name(stage)]);
            own_files::remove_files(&self.root, &manifest)?;
        }
        Ok(())
    }

    pub(crate) fn write_manifest(&self, stage: Stage, manifest: &Manifest) -> Result<()> {
        write_atomically(&self.manifest_path(stage), serde_json::to_string_pretty(manifest)?.as_bytes())
    }
}

/// Whether a folder is a run's.
pub fn is_run(root: &Path) -> bool {
    own_files::is_file(&root.join(MARKER))
}

/// # Errors
/// If a folder cannot be a run's, or holds something that a run's may not. Nothing is written.
pub fn check(root: &Path) -> Result<()> {
    own_files::check_path(root)?;
    records::check(root)
}

/// Marks a folder as a run's.
fn mark(path: &Path) -> Result<()> {
    let text = "A run of `pipeline`. Its sub-folders are written by the program.\n";
    match fs::File::create_new(path).and_then(|mut file| file.write_all(text.as_bytes())) {
        // Another process was faster.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && own_files::is_file(path) => Ok(()),
        other => other.with_context(|| format!("cannot write {}", path.display())),
    }
}

/// Whether a file that a manifest lists is there, with its size.
pub fn has_size(root: &Path, (name, size): &(String, u64)) -> bool {
    fs::symlink_metadata(root.join(name)).is_ok_and(|m| m.is_file() && m.len() == *size)
}

fn refuse_foreign_folder(root: &Path, inputs: &[PathBuf]) -> Result<()> {
    if !is_run(root)
        && let Some(name) = OWNED.iter().find(|name| root.join(name).symlink_metadata().is_ok())
        // Another process may have begun the run between the two looks.
        && !is_run(root)
    {
        bail!(
            "{} holds `{name}` but is not a run of this program, which would write there; choose another --out",
            root.display()
        );
    }
    for input in inputs {
        let Ok(input) = input.canonicalize() else { continue };
        let owner =
            OWNED.iter().find(|name| root.join(name).canonicalize().is_ok_and(|owned| input.starts_with(owned)));
        if let Some(name) = owner {
            bail!(
                "{} lies in `{name}` of {}, which the run writes; move it elsewhere",
                input.display(),
                root.display()
            );
        }
    }
    Ok(())
}

/// What a stage of the run in this folder has recorded of itself, if it has begun.
pub fn manifest(root: &Path, stage: Stage) -> Option<Manifest> {
    records::any_manifest(root, stage).ok().flatten().filter(|m| !m.fingerprint.is_empty())
}

/// What the finished stages of a run warned of, in their order.
pub fn warnings(root: &Path) -> Vec<String> {
    STAGES.iter().filter_map(|&stage| manifest(root, stage)).flat_map(|m| m.warnings).collect()
}

/// Seconds since 1970.
pub(crate) fn now() -> Option<u64> {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok().map(|d| d.as_secs())
}

#[cfg(test)]
mod tests;
