//! Checksums of every file that a stage wrote: `<out>/stages/<stage>.sha256`, readable by `sha256sum -c` inside the run
//! folder. A file is hashed while it is written, and compared before a stage reads it. So a byte that changes on disk
//! costs the time of one shard and never gives a wrong number.
//!
//! A file is listed before it is renamed to its final name, so the list tells which files belong to the run.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use crate::records;
use crate::run_folder::Stage;
use selfrepair_core::files::{hex, sha256_of_file, write_atomically};
use selfrepair_core::own_files::{self, create_beside};

/// Placeholder for the checksum of a file that is being written.
const UNFINISHED: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The checksums of one stage, in memory and on disk.
pub struct Ledger {
    root: PathBuf,
    stage: Stage,
    path: PathBuf,
    /// By path under the run folder.
    sums: Mutex<BTreeMap<String, String>>,
}

impl Ledger {
    /// Opens the list of an earlier run, if there is one.
    pub fn open(root: &Path, stage: Stage) -> Self {
        let path = root.join(records::ledger_name(stage));
        // A ledger that cannot be read has no lines: what it spoke of is computed again.
        let sums = Mutex::new(records::ledger(root, stage).unwrap_or_default());
        Self { root: root.to_path_buf(), stage, path, sums }
    }

    fn sums(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the list from disk again.
    pub fn reload(&self) {
        *self.sums() = records::ledger(&self.root, self.stage).unwrap_or_default();
    }

    /// Removes all entries.
    pub fn clear(&self) -> Result<()> {
        self.sums().clear();
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(e).with_context(|| format!("cannot remove {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Adds a file that is about to be written; its checksum follows when the stage is sealed.
    ///
    /// # Errors
    /// If a file is there that was not recorded: it is somebody else's.
    pub fn announce(&self, file: &Path) -> Result<()> {
        let name = self.relative(file);
        if self.sums().contains_key(&name) {
            return Ok(());
        }
        if fs::symlink_metadata(file).is_ok() {
            // Another process that writes the report may have announced it.
            self.reload();
            ensure!(
                self.sums().contains_key(&name),
                "{} was not written by this run; move it elsewhere",
                file.display()
            );
            return Ok(());
        }
        self.record(file, UNFINISHED.to_string())
    }

    /// Adds a file that is finished but for its name. One line is appended; a line that a kill cuts short counts as none.
    pub fn record(&self, file: &Path, sha256: String) -> Result<()> {
        let name = self.relative(file);
        // The line break comes first, so that a truncated line cannot corrupt the next one.
        let line = format!("\n{sha256}  {name}\n");
        let append = || {
            let mut options = OpenOptions::new();
            own_files::open_to_change(&self.path, options.create(true).append(true))?.write_all(line.as_bytes())
        };
        append().with_context(|| format!("cannot write {}", self.path.display()))?;
        self.sums().insert(name, sha256);
        Ok(())
    }

    /// Whether the file was recorded and still has those bytes.
    pub fn holds(&self, file: &Path) -> bool {
        let recorded = self.sums().get(&self.relative(file)).cloned();
        recorded.is_some() && sha256_of_file(file).ok() == recorded
    }

    /// Makes the list hold exactly these files, hashing those that were not recorded.
    pub fn seal(&self, files: &[PathBuf]) -> Result<()> {
        let recorded = std::mem::take(&mut *self.sums());
        let sums = files.par_iter().map(|file| {
            let name = self.relative(file);
            let sha256 = recorded.get(&name).filter(|sum| *sum != UNFINISHED).cloned();
            let sha256 = sha256.map_or_else(|| sha256_of_file(file), Ok)?;
            Ok((name, sha256))
        });
        let sums: BTreeMap<String, String> = sums.collect::<Result<_>>()?;
        let text: String = sums.iter().map(|(name, sha256)| format!("{sha256}  {name}\n")).collect();
        write_atomically(&self.path, text.as_bytes())?;
        *self.sums() = sums;
        Ok(())
    }

    fn relative(&self, file: &Path) -> String {
        file.strip_prefix(&self.root).unwrap_or(file).to_string_lossy().into_owned()
    }
}

/// Those of a finished stage's files that have other bytes than were written, or are gone. Nothing, if the stage was
/// finished by a version of this program that recorded no checksums.
pub fn damaged(root: &Path, stage: Stage, files: &[(String, u64)]) -> Vec<String> {
    if !own_files::is_file(&root.join(records::ledger_name(stage))) {
        return Vec::new();
    }
    let sums = records::ledger(root, stage).unwrap_or_default();
    let is_damaged = |name: &str| {
        let recorded = sums.get(name);
        recorded.is_none() || sha256_of_file(&root.join(name)).ok().as_ref() != recorded
    };
    files.par_iter().map(|(name, _)| name).filter(|name| is_damaged(name)).cloned().collect()
}

/// A file that is hashed while it is written, under a temporary name. It is removed when dropped unless it was finished.
pub struct Hashed {
    file: NamedTempFile,
    path: PathBuf,
    hasher: Sha256,
}

impl Hashed {
    /// A file that will be called `path`.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { file: create_beside(path)?, path: path.to_path_buf(), hasher: Sha256::new() })
    }

    /// Syncs the file, records its checksum, and renames it to its final name. Returns the checksum.
    pub fn finish(self, ledger: Option<&Ledger>) -> Result<String> {
        let place = || format!("cannot write {}", self.path.display());
        self.file.as_file().sync_all().with_context(place)?;
        let sha256 = hex(&self.hasher.finalize());
        if let Some(ledger) = ledger {
            ledger.record(&self.path, sha256.clone())?;
        }
        self.file.persist(&self.path).map_err(|e| e.error).with_context(place)?;
        Ok(sha256)
    }
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(bytes.get(..written).unwrap_or(bytes));
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_a_lost_file_and_a_cut_line_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("stages")).unwrap();
        let file = |name: &str| dir.path().join("work").join(name);
        fs::create_dir(dir.path().join("work")).unwrap();
        for name in ["a", "b", "c"] {
            fs::write(file(name), name).unwrap();
        }
        let ledger = Ledger::open(dir.path(), Stage::Trace);
        ledger.record(&file("a"), sha256_of_file(&file("a")).unwrap()).unwrap();
        ledger.seal(&[file("a"), file("b")]).unwrap();
        let whole = |files: &[&str]| {
            let files: Vec<(String, u64)> = files.iter().map(|f| (format!("work/{f}"), 1)).collect();
            damaged(dir.path(), Stage::Trace, &files)
        };
        assert_eq!(whole(&["a", "b"]), [""; 0]);
        assert_eq!(whole(&["a", "c"]), ["work/c"], "not recorded");
        fs::write(file("a"), "A").unwrap();
        assert_eq!(whole(&["a", "b"]), ["work/a"], "the same size, another byte");
        fs::remove_file(file("b")).unwrap();
        assert_eq!(whole(&["a", "b"]), ["work/a", "work/b"]);
        fs::write(file("a"), "a").unwrap();

        // A line that a kill cut short, and one after it.
        let path = dir.path().join(records::ledger_name(Stage::Trace));
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, &text[..40]).unwrap();
        let ledger = Ledger::open(dir.path(), Stage::Trace);
        assert!(!ledger.holds(&file("a")));
        ledger.record(&file("c"), sha256_of_file(&file("c")).unwrap()).unwrap();
        assert!(Ledger::open(dir.path(), Stage::Trace).holds(&file("c")));
    }

    /// So that what a kill leaves is known to be the run's; and nobody else's file is written over.
    #[test]
    fn a_file_is_on_record_before_it_has_its_name() {
        let dir = tempfile::tempdir().unwrap();
        ["stages", "model"].iter().for_each(|f| fs::create_dir(dir.path().join(f)).unwrap());
        let (ledger, file) = (Ledger::open(dir.path(), Stage::Export), dir.path().join("model/weights.bin"));
        ledger.announce(&file).unwrap();
        ledger.announce(&file).unwrap();
        assert!(records::recorded(dir.path(), Stage::Export).unwrap().contains("model/weights.bin"));
        fs::write(&file, "weights").unwrap();
        assert!(!ledger.holds(&file));
        assert!(!Ledger::open(dir.path(), Stage::Export).holds(&file));
        ledger.announce(&file).unwrap();
        ledger.seal(std::slice::from_ref(&file)).unwrap();
        assert!(ledger.holds(&file));

        let theirs = dir.path().join("model/mine.bin");
        fs::write(&theirs, "mine").unwrap();
        let error = ledger.announce(&theirs).unwrap_err().to_string();
        assert!(error.contains("mine.bin was not written by this run"), "{error}");
    }

    #[test]
    fn a_stage_without_a_ledger_is_not_damaged() {
        let dir = tempfile::tempdir().unwrap();
        assert!(damaged(dir.path(), Stage::Trace, &[("gone".into(), 1)]).is_empty());
    }
}
