//! Who may write into a run's folder: one process alone, or several that share `ablate`, each with a set of its shards.
//!
//! Locks are the operating system's, so those of a dead process are gone. A process that may write anything holds `.lock`
//! alone. Those that each ablate a set of shards hold it together, and each a file of its own set besides.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};

use selfrepair_core::files::files_in;
use selfrepair_core::shards::ShardSet;

/// The locks of one process on one folder.
pub struct Lock {
    root: PathBuf,
    file: File,
    /// Of its own set, if it is one of several.
    _set: Option<File>,
}

impl Lock {
    /// Takes the folder for this process alone.
    pub fn alone(root: &Path) -> Result<Self> {
        let lock = Self { root: root.to_path_buf(), file: open(&root.join(".lock"))?, _set: None };
        if !lock.try_alone()? {
            bail!("{} is in use by another run ({}); wait for it or choose another --out", root.display(), named(root));
        }
        Ok(lock)
    }

    /// Takes a set of shards; the folder itself is not locked yet.
    pub fn of_set(root: &Path, set: ShardSet) -> Result<Self> {
        for (path, process) in held_sets(root)? {
            let of = path.extension().unwrap_or_default().to_string_lossy().into_owned();
            let divided = |name: &str| name.split_once("-of-").map(|(_, n)| n.to_string());
            ensure!(
                divided(&of) == divided(&set.name()),
                "process {process} is at work on the shards {} of {}; --shard {set} divides them in another way",
                of.replace("-of-", "/"),
                root.display(),
            );
        }
        let path = root.join(format!(".lock.{}", set.name()));
        let own = open(&path)?;
        if !tried(own.try_lock(), &path)? {
            let process = fs::read_to_string(&path).unwrap_or_default();
            bail!("the shards {set} of {} are being computed by process {}", root.display(), process.trim());
        }
        sign(&own, &path)?;
        Ok(Self { root: root.to_path_buf(), file: open(&root.join(".lock"))?, _set: Some(own) })
    }

    /// Whether this process now has the folder alone.
    pub fn try_alone(&self) -> Result<bool> {
        let path = self.root.join(".lock");
        let taken = tried(self.file.try_lock(), &path)?;
        if taken {
            sign(&self.file, &path)?;
        }
        Ok(taken)
    }

    /// Whether this process now has the folder together with others that do.
    pub fn try_share(&self) -> Result<bool> {
        tried(self.file.try_lock_shared(), &self.root.join(".lock"))
    }

    pub fn release(&self) -> Result<()> {
        self.file.unlock().with_context(|| format!("cannot unlock {}", self.root.join(".lock").display()))
    }
}

fn open(path: &Path) -> Result<File> {
    let file = File::options().create(true).truncate(false).read(true).write(true).open(path);
    file.with_context(|| format!("cannot write {}", path.display()))
}

fn tried(result: Result<(), TryLockError>, path: &Path) -> Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(e)) => Err(e).context(format!("cannot lock {}", path.display())),
    }
}

/// Writes down who holds a lock.
fn sign(mut file: &File, path: &Path) -> Result<()> {
    let signed = file.set_len(0).and_then(|()| std::io::Seek::rewind(&mut file));
    let signed = signed.and_then(|()| writeln!(file, "{}", std::process::id()));
    signed.with_context(|| format!("cannot write {}", path.display()))
}

/// Lock files of sets that are held, and by which process.
fn held_sets(root: &Path) -> Result<Vec<(PathBuf, String)>> {
    let mut held = Vec::new();
    for path in files_in(root)? {
        if !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".lock.")) {
            continue;
        }
        let file = File::open(&path).map_err(|e| anyhow!(e).context(format!("cannot open {}", path.display())))?;
        if !tried(file.try_lock_shared(), &path)? {
            let process = fs::read_to_string(&path).unwrap_or_default().trim().to_string();
            held.push((path, process));
        }
    }
    Ok(held)
}

/// The processes that are at work in a folder: one that has it alone, or those that share it.
pub fn holders(root: &Path) -> Result<Vec<String>> {
    let path = root.join(".lock");
    let Ok(file) = File::open(&path) else { return Ok(vec![]) };
    if !tried(file.try_lock_shared(), &path)? {
        return Ok(vec![fs::read_to_string(&path).unwrap_or_default().trim().to_string()]);
    }
    file.unlock()?;
    Ok(held_sets(root)?.into_iter().map(|(_, process)| process).collect())
}

/// `process 12` or `processes 12, 13`.
pub fn named(root: &Path) -> String {
    match holders(root).unwrap_or_default().as_slice() {
        [one] => format!("process {one}"),
        many => format!("processes {}", many.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_one_process_s_or_shared_by_disjoint_sets() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let set = |text: &str| Lock::of_set(root, text.parse().unwrap());
        let first = set("1/2").unwrap();
        assert!(set("1/2").err().unwrap().to_string().contains("are being computed by process"));
        assert!(set("1/3").err().unwrap().to_string().contains("divides them in another way"));
        let second = set("2/2").unwrap();
        assert!(first.try_share().unwrap() && second.try_share().unwrap());
        assert_eq!(holders(root).unwrap(), [std::process::id().to_string(), std::process::id().to_string()]);
        let error = Lock::alone(root).err().unwrap().to_string();
        assert!(error.contains("in use by another run (processes"), "{error}");
        first.release().unwrap();
        assert!(!first.try_alone().unwrap());
        second.release().unwrap();
        assert!(first.try_alone().unwrap() && !second.try_share().unwrap());
    }
}
