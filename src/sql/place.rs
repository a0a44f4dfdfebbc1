//! Where one run's tables lie.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// The folder of a run.
#[derive(Clone)]
pub struct Place {
    root: PathBuf,
}

impl Place {
    /// # Errors
    /// If there are no tables.
    pub fn open(out: &Path) -> Result<Self> {
        let place = Self { root: out.to_path_buf() };
        ensure!(
            place.root.join("tables").is_dir(),
            "{} has no tables; run `pipeline run all` first or name a run with --out",
            out.display()
        );
        ensure!(!place.tables()?.is_empty(), "{} has no tables yet; run `pipeline run all` first", out.display());
        Ok(place)
    }

    /// Every folder below `tables` that holds at least one file of a table.
    pub fn tables(&self) -> Result<BTreeSet<String>> {
        let folder = self.root.join("tables");
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() && fs::read_dir(&path)?.flatten().any(|f| is_parquet(&f.path())) {
                names.insert(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
            }
        }
        Ok(names)
    }

    /// The table's folder, and its first file, whose schema is that of all.
    pub fn table(&self, name: &str) -> Result<(String, String)> {
        let folder = self.root.join("tables").join(name);
        ensure!(folder.is_dir(), "{} is missing; has the run finished?", folder.display());
        let files = fs::read_dir(&folder)?.flatten().map(|f| f.path()).filter(|p| is_parquet(p));
        let first = files.min().with_context(|| format!("{} has no files; has the run finished?", folder.display()))?;
        Ok((unicode(&folder)?, unicode(&first)?))
    }

    /// What a file of the run holds, if it is there.
    pub fn read(&self, relative: &str) -> Option<Vec<u8>> {
        fs::read(self.root.join(relative)).ok()
    }
}

fn is_parquet(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "parquet")
}

fn unicode(path: &Path) -> Result<String> {
    Ok(path.to_str().with_context(|| format!("{} is not Unicode", path.display()))?.to_string())
}
