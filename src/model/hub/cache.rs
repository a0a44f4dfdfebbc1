//! The local cache of the hub, in the layout of Hugging Face's own tools, which can share it: `blobs/` has the bytes by
//! identifier, `snapshots/<commit>/` has file names as links to them, `refs/` has the last known commit of each branch.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::Kind;
use selfrepair_core::files::write_atomically;
use selfrepair_core::{interrupt, progress};

/// One repository in the cache.
pub struct Cached {
    cache: PathBuf,
    /// `models--owner--name`
    folder: String,
}

/// Holds a file of the cache for this process.
pub struct Held(#[expect(dead_code, reason = "unlocks when it is closed")] File);

impl Cached {
    /// `name` is checked.
    pub fn new(cache: PathBuf, kind: Kind, name: &str) -> Self {
        let prefix = match kind {
            Kind::Model => "models",
            Kind::Dataset => "datasets",
        };
        Self { cache, folder: format!("{prefix}--{}", name.replace('/', "--")) }
    }

    fn root(&self) -> PathBuf {
        self.cache.join(&self.folder)
    }

    pub fn snapshots(&self) -> PathBuf {
        self.root().join("snapshots")
    }

    /// The commit that a revision was when it was last asked for, or the revision itself if it is a commit that is there.
    pub fn commit_of(&self, revision: &str) -> Option<String> {
        let known = super::settings::short_text(&self.root().join("refs").join(revision));
        known.filter(|commit| super::is_identifier(commit)).or_else(|| {
            let is_there = super::is_identifier(revision) && self.snapshots().join(revision).is_dir();
            is_there.then(|| revision.to_string())
        })
    }

    /// Remembers which commit a revision is.
    pub fn set_commit_of(&self, revision: &str, commit: &str) -> Result<()> {
        let path = self.root().join("refs").join(revision);
        if revision == commit || super::settings::short_text(&path).as_deref() == Some(commit) {
            return Ok(());
        }
        create_folder_of(&path)?;
        write_atomically(&path, commit.as_bytes())
    }

    /// Where a file of a commit is, or would be.
    pub fn pointer(&self, commit: &str, file: &str) -> PathBuf {
        self.snapshots().join(commit).join(file)
    }

    pub fn blob(&self, id: &str) -> PathBuf {
        self.root().join("blobs").join(id)
    }

    /// Where the bytes gather until all are there; what an earlier run left is taken up again.
    pub fn partial(&self, id: &str) -> PathBuf {
        self.root().join("blobs").join(format!("{id}.incomplete"))
    }

    /// Opens the partial file, which must be a file: what somebody else put in its place is not written through.
    pub fn open_partial(&self, id: &str) -> Result<File> {
        let path = self.partial(id);
        create_folder_of(&path)?;
        let place = || format!("cannot write {}", path.display());
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = File::options().read(true).append(true).create(true).custom_flags(flags).open(&path);
        let file = file.with_context(place)?;
        ensure!(file.metadata()?.is_file(), "{} is not a regular file; remove it", path.display());
        Ok(file)
    }

    /// Has the snapshot name the blob.
    pub fn link(&self, commit: &str, file: &str, id: &str) -> Result<PathBuf> {
        let pointer = self.pointer(commit, file);
        create_folder_of(&pointer)?;
        let up = "../".repeat(file.split('/').count() + 1);
        let blob = PathBuf::from(format!("{up}blobs/{id}"));
        let place = || format!("cannot write {}", pointer.display());
        if pointer.is_symlink() {
            fs::remove_file(&pointer).with_context(place)?;
        }
        match std::os::unix::fs::symlink(&blob, &pointer) {
            // Another process was faster.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            made => made.with_context(place)?,
        }
        Ok(pointer)
    }

    /// Waits until no other process fetches the blob, as long as the other one gets on.
    pub fn hold(&self, id: &str) -> Result<Held> {
        let path = self.cache.join(".locks").join(&self.folder).join(format!("{id}.lock"));
        create_folder_of(&path)?;
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = File::options().write(true).create(true).truncate(false).custom_flags(flags).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        let size = || fs::metadata(self.partial(id)).map_or(0, |m| m.len());
        let (mut told, mut seen, mut since) = (false, size(), Instant::now());
        while !locked(&file).with_context(|| format!("cannot lock {}", path.display()))? {
            interrupt::check()?;
            if !told && since.elapsed() > Duration::from_secs(1) {
                progress::line("hub", "another process fetches this file; waiting for it");
                told = true;
            }
            let now = size();
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
            if since.elapsed() > Duration::from_secs(30) {
                bail!(
                    "another process holds {} and its download makes no progress; end that process and run again",
                    path.display()
                );
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(Held(file))
    }
}

fn locked(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(fs::TryLockError::WouldBlock) => Ok(false),
        Err(fs::TryLockError::Error(e)) => Err(e),
    }
}

fn create_folder_of(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).with_context(|| format!("cannot create {} in the hub's cache", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cached(folder: &Path) -> Cached {
        Cached::new(folder.into(), Kind::Model, "me/tiny")
    }

    #[test]
    fn names_in_a_snapshot_lead_to_the_bytes_however_deep_they_lie() {
        let dir = tempfile::tempdir().unwrap();
        let cached = cached(dir.path());
        create_folder_of(&cached.blob("abc")).unwrap();
        fs::write(cached.blob("abc"), "bytes").unwrap();
        for file in ["config.json", "data/en/train.txt"] {
            let path = cached.link("c0ffee", file, "abc").unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), "bytes");
            assert_eq!(path, dir.path().join("models--me--tiny/snapshots/c0ffee").join(file));
            // Again, as after a blob that was lost.
            cached.link("c0ffee", file, "abc").unwrap();
        }
    }

    #[test]
    fn a_branch_is_the_commit_it_was_and_a_commit_is_itself() {
        let dir = tempfile::tempdir().unwrap();
        let cached = cached(dir.path());
        assert_eq!(cached.commit_of("main"), None);
        cached.set_commit_of("main", "c0ffee").unwrap();
        cached.set_commit_of("refs/pr/1", "beef").unwrap();
        assert_eq!(cached.commit_of("main").as_deref(), Some("c0ffee"));
        assert_eq!(cached.commit_of("refs/pr/1").as_deref(), Some("beef"));
        assert_eq!(cached.commit_of("c0ffee"), None);
        fs::create_dir_all(cached.snapshots().join("c0ffee")).unwrap();
        assert_eq!(cached.commit_of("c0ffee").as_deref(), Some("c0ffee"));
        // A folder of snapshots is named by what is checked, not by what a file says.
        fs::write(cached.root().join("refs/main"), "../../elsewhere").unwrap();
        assert_eq!(cached.commit_of("main"), None);
    }

    #[test]
    fn a_link_in_the_place_of_a_partial_file_is_not_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let cached = cached(dir.path());
        let mine = dir.path().join("mine");
        fs::write(&mine, "mine").unwrap();
        fs::create_dir_all(cached.partial("abc").parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&mine, cached.partial("abc")).unwrap();
        assert!(cached.open_partial("abc").is_err());
        assert_eq!(fs::read_to_string(&mine).unwrap(), "mine");
    }
}
