//! Locks on a run folder: held by one process alone, or shared by several that each compute a set of `ablate`'s shards.
//!
//! Locks are the operating system's, so those of a dead process are gone. A process that may write anything holds
//! `.lock` exclusively. Processes that compute shard sets share it, and each also holds a lock file of its own set.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};

use selfrepair_core::files::files_in;
use selfrepair_core::interrupt;
use selfrepair_core::own_files::{self, LOCK, REPORT_LOCK};
use selfrepair_core::progress;
use selfrepair_core::shards::ShardSet;

/// The locks of one process on one folder.
pub struct Lock {
    root: PathBuf,
    file: File,
    /// Of its own set, if it is one of several.
    set: Option<File>,
}

impl Lock {
    /// Takes the folder for this process alone.
    pub fn alone(root: &Path) -> Result<Self> {
        let lock = Self { root: root.to_path_buf(), file: open(&root.join(LOCK))?, set: None };
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
                "process {process} is computing the shards {} of {}; --shard {set} is another division",
                of.replace("-of-", "/"),
                root.display(),
            );
        }
        let path = root.join(format!(".lock.{}", set.name()));
        let own = open(&path)?;
        if !tried(own.try_lock(), &path)? {
            bail!("the shards {set} of {} are being computed by process {}", root.display(), signed(&path));
        }
        sign(&own, &path)?;
        Ok(Self { root: root.to_path_buf(), file: open(&root.join(LOCK))?, set: Some(own) })
    }

    /// Whether this process is one of several that share the run.
    pub fn is_of_set(&self) -> bool {
        self.set.is_some()
    }

    /// Whether this process now has the folder alone.
    pub fn try_alone(&self) -> Result<bool> {
        let path = self.root.join(LOCK);
        let taken = tried(self.file.try_lock(), &path)?;
        if taken {
            sign(&self.file, &path)?;
        }
        Ok(taken)
    }

    /// Whether this process now has the folder together with others that do.
    pub fn try_share(&self) -> Result<bool> {
        tried(self.file.try_lock_shared(), &self.root.join(LOCK))
    }

    pub fn release(&self) -> Result<()> {
        self.file.unlock().with_context(|| format!("cannot unlock {}", self.root.join(LOCK).display()))
    }
}

/// Held together by all who write the report, and alone by a run that removes an old one.
pub struct ReportLock {
    file: File,
    path: PathBuf,
}

impl ReportLock {
    /// Waits until nobody removes the report.
    pub fn shared(root: &Path) -> Result<Self> {
        let lock = Self::open(root)?;
        lock.share()?;
        Ok(lock)
    }

    /// Waits until nobody writes the report.
    pub fn alone(root: &Path) -> Result<Self> {
        let lock = Self::open(root)?;
        lock.wait(File::try_lock)?;
        Ok(lock)
    }

    /// From now on others may write it too.
    pub fn share(&self) -> Result<()> {
        self.wait(File::try_lock_shared)
    }

    fn open(root: &Path) -> Result<Self> {
        let path = root.join(REPORT_LOCK);
        Ok(Self { file: open(&path)?, path })
    }

    fn wait(&self, take: impl Fn(&File) -> Result<(), TryLockError>) -> Result<()> {
        let mut told = false;
        while !tried(take(&self.file), &self.path)? {
            interrupt::check()?;
            if !told {
                progress::line("report", &format!("waiting for process {}, which writes it", signed(&self.path)));
                told = true;
            }
            thread::sleep(Duration::from_millis(50));
        }
        sign(&self.file, &self.path)
    }
}

fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    let file = own_files::open_to_change(path, options.create(true).truncate(false).read(true).write(true));
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

/// The number of the process that wrote itself down in a lock.
fn signed(path: &Path) -> String {
    let text = own_files::read_record(path).ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
    text.trim().parse::<u32>().map_or("(unknown)".to_string(), |process| process.to_string())
}

/// Lock files of sets that are held, and by which process.
fn held_sets(root: &Path) -> Result<Vec<(PathBuf, String)>> {
    let mut held = Vec::new();
    for path in files_in(root)? {
        if !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".lock.")) {
            continue;
        }
        let file = own_files::open_own(&path, OpenOptions::new().read(true));
        let file = file.map_err(|e| anyhow!(e).context(format!("cannot open {}", path.display())))?;
        if !tried(file.try_lock_shared(), &path)? {
            let process = signed(&path);
            held.push((path, process));
        }
    }
    Ok(held)
}

/// The processes that hold a folder: one that has it alone, or those that share it.
pub fn holders(root: &Path) -> Result<Vec<String>> {
    let path = root.join(LOCK);
    let file = match own_files::open_own(&path, OpenOptions::new().read(true)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        other => other.with_context(|| format!("cannot open {}", path.display()))?,
    };
    if !tried(file.try_lock_shared(), &path)? {
        return Ok(vec![signed(&path)]);
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
        assert!(set("1/3").err().unwrap().to_string().contains("is another division"));
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

    #[test]
    fn a_report_is_written_by_many_and_removed_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (ReportLock::shared(dir.path()).unwrap(), ReportLock::shared(dir.path()).unwrap());
        let root = dir.path().to_path_buf();
        let remover = std::thread::spawn(move || ReportLock::alone(&root));
        drop(first);
        std::thread::sleep(Duration::from_millis(120));
        assert!(!remover.is_finished());
        drop(second);
        let remover = remover.join().unwrap().unwrap();
        let root = dir.path().to_path_buf();
        let third = std::thread::spawn(move || ReportLock::shared(&root).map(|_| ()));
        std::thread::sleep(Duration::from_millis(120));
        assert!(!third.is_finished());
        remover.share().unwrap();
        third.join().unwrap().unwrap();
    }

    #[test]
    fn a_lock_that_is_a_link_is_refused_and_its_target_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (root, keys) = (dir.path().join("out"), dir.path().join("keys"));
        std::fs::create_dir(&root).unwrap();
        std::fs::write(&keys, "secret").unwrap();
        for name in [".lock", ".lock.1-of-2", ".report.lock"] {
            let link = root.join(name);
            std::os::unix::fs::symlink(&keys, &link).unwrap();
            let error = match name {
                ".lock" => Lock::alone(&root).map(|_| ()),
                ".report.lock" => ReportLock::alone(&root).map(|_| ()),
                _ => Lock::of_set(&root, "1/2".parse().unwrap()).map(|_| ()),
            };
            let error = format!("{:#}", error.unwrap_err());
            assert!(error.contains(name) && error.contains("symbolic link"), "{error}");
            std::fs::remove_file(&link).unwrap();
            std::fs::hard_link(&keys, &link).unwrap();
            let error = match name {
                ".lock" => Lock::alone(&root).map(|_| ()),
                ".report.lock" => ReportLock::alone(&root).map(|_| ()),
                _ => Lock::of_set(&root, "1/2".parse().unwrap()).map(|_| ()),
            };
            assert!(format!("{:#}", error.unwrap_err()).contains("hard-linked"), "{name}");
            std::fs::remove_file(&link).unwrap();
        }
        assert_eq!(std::fs::read_to_string(keys).unwrap(), "secret");
    }
}
