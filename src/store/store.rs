//! Where the records of a run lie: a folder now, a bucket later. Names are below the run, with `/` between their parts.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use selfrepair_core::files::write_atomically;
use selfrepair_core::own_files::{self, create_beside};

/// Small objects by name. [`Store::create`] is the only operation that decides between processes.
pub trait Store: Send + Sync {
    /// The bytes of an object, if it is there.
    ///
    /// # Errors
    /// If it is there and cannot be read.
    fn get(&self, name: &str) -> Result<Option<Vec<u8>>>;

    /// Writes an object, whole or not at all.
    ///
    /// # Errors
    /// If it cannot be written.
    fn put(&self, name: &str, bytes: &[u8]) -> Result<()>;

    /// As [`Store::put`], but only if nothing has that name. Returns whether it was written.
    ///
    /// # Errors
    /// If it cannot be written.
    fn create(&self, name: &str, bytes: &[u8]) -> Result<bool>;

    /// The names that begin with `folder/`, sorted.
    ///
    /// # Errors
    /// If they cannot be listed.
    fn list(&self, folder: &str) -> Result<Vec<String>>;

    /// The file of an object, where the store is on this machine.
    fn local(&self, name: &str) -> Option<PathBuf>;
}

/// A run in a folder.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(root: &Path) -> Self {
        Self(root.to_path_buf())
    }

    fn path(&self, name: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        let folder = path.parent().unwrap_or(&path);
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(path)
    }
}

impl Store for Folder {
    fn get(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.0.join(name);
        match own_files::read_record(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            other => Ok(Some(other.with_context(|| format!("cannot read {}", path.display()))?)),
        }
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        write_atomically(&self.path(name)?, bytes)
    }

    fn create(&self, name: &str, bytes: &[u8]) -> Result<bool> {
        let path = self.path(name)?;
        let create = || -> io::Result<bool> {
            let mut file = create_beside(&path)?;
            file.write_all(bytes)?;
            file.as_file().sync_all()?;
            match file.persist_noclobber(&path) {
                Ok(_) => Ok(true),
                Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
                Err(e) => Err(e.error),
            }
        };
        create().with_context(|| format!("cannot write {}", path.display()))
    }

    fn list(&self, folder: &str) -> Result<Vec<String>> {
        let paths = own_files::walk(&self.0.join(folder))?.into_iter();
        let names = paths.filter(|(_, kind)| kind.is_file()).filter_map(|(path, _)| {
            let name = path.strip_prefix(&self.0).ok()?.to_str()?;
            (!own_files::is_temporary(&path)).then(|| name.to_string())
        });
        Ok(names.collect())
    }

    fn local(&self, name: &str) -> Option<PathBuf> {
        Some(self.0.join(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_created_once_whoever_asks() {
        let dir = tempfile::tempdir().unwrap();
        let store = Folder::new(dir.path());
        assert_eq!(store.get("work/a/plan.json").unwrap(), None);
        let created: Vec<bool> = std::thread::scope(|scope| {
            let create = |i: u8| {
                scope.spawn({
                    let store = &store;
                    move || store.create("work/a/plan.json", &[i; 1000]).unwrap()
                })
            };
            (0..8).map(create).collect::<Vec<_>>().into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(created.iter().filter(|&&c| c).count(), 1);
        let bytes = store.get("work/a/plan.json").unwrap().unwrap();
        assert!(bytes.len() == 1000 && created[bytes[0] as usize]);
        store.put("work/a/plan.json", b"other").unwrap();
        store.put("work/b.json", b"").unwrap();
        assert_eq!(store.get("work/a/plan.json").unwrap().unwrap(), b"other");
        assert_eq!(store.list("work").unwrap(), ["work/a/plan.json", "work/b.json"]);
        assert_eq!(store.list("nothing").unwrap(), [""; 0]);
    }
}
