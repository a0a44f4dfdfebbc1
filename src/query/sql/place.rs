//! Where one run's tables lie: a folder, or a prefix in a bucket.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use datafusion::prelude::SessionContext;

use super::bucket::Bucket;
use selfrepair_core::address;
use crate::catalog;
use selfrepair_store::run_folder::{Manifest, STAGES};
use selfrepair_core::files::files_below;

pub enum Place {
    Folder(PathBuf),
    Bucket(Bucket),
}

impl Place {
    /// A folder, or `s3://bucket/prefix`.
    ///
    /// # Errors
    /// If there are no tables.
    pub async fn open(out: &Path) -> Result<Self> {
        let place = match (address::scheme(out).as_deref(), out.to_str()) {
            (None, _) => Place::Folder(out.to_path_buf()),
            (Some("s3"), Some(url)) if url.contains("://") => Place::Bucket(Bucket::open(url)?),
            (Some(scheme), _) => {
                bail!("--out names an address ({scheme}:…); runs are read from a folder or from s3://bucket/prefix")
            }
        };
        let exists = !matches!(&place, Place::Folder(root) if !root.join("tables").is_dir());
        ensure!(
            exists && !place.tables().await?.is_empty(),
            "{} has no tables; run `pipeline run all` first or name a run with --out",
            out.display()
        );
        Ok(place)
    }

    /// Lets a session read from there.
    pub fn register(&self, context: &SessionContext) -> Result<()> {
        match self {
            Place::Folder(_) => Ok(()),
            Place::Bucket(bucket) => bucket.register(context),
        }
    }

    /// Every folder below `tables` that holds at least one file of a table.
    pub async fn tables(&self) -> Result<BTreeSet<String>> {
        let root = match self {
            Place::Folder(root) => root,
            Place::Bucket(bucket) => return bucket.tables().await,
        };
        let folder = root.join("tables");
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
    pub async fn table(&self, name: &str) -> Result<(String, String)> {
        let root = match self {
            Place::Folder(root) => root,
            Place::Bucket(bucket) => return bucket.table(name).await,
        };
        let folder = root.join("tables").join(name);
        ensure!(folder.is_dir(), "{} is missing; has the run finished?", folder.display());
        let files = fs::read_dir(&folder)?.flatten().map(|f| f.path()).filter(|p| is_parquet(p));
        let first = files.min().with_context(|| format!("{} has no files; has the run finished?", folder.display()))?;
        Ok((unicode(&folder)?, unicode(&first)?))
    }

    /// Bytes of a table's files, and their rows where they can be had without a query.
    pub async fn size(&self, name: &str) -> Result<(u64, Option<u64>)> {
        match self {
            Place::Folder(root) => {
                let folder = root.join("tables").join(name);
                let bytes = files_below(&folder)?.iter().flat_map(|p| p.metadata()).map(|m| m.len()).sum();
                Ok((bytes, Some(catalog::rows(&folder)?)))
            }
            Place::Bucket(bucket) => Ok((bucket.size(name).await?, None)),
        }
    }

    /// What a file of the run holds, if it is there.
    pub async fn read(&self, relative: &str) -> Option<String> {
        let bytes = match self {
            Place::Folder(root) => fs::read(root.join(relative)).ok()?,
            Place::Bucket(bucket) => bucket.read(relative).await?,
        };
        String::from_utf8(bytes).ok()
    }

    /// The stages that were begun and not completed.
    pub async fn incomplete_stages(&self) -> Vec<&'static str> {
        let mut names = Vec::new();
        for stage in STAGES {
            let text = self.read(&format!("stages/{}.json", stage.name())).await;
            if text.and_then(|t| serde_json::from_str(&t).ok()).is_some_and(|m: Manifest| !m.complete) {
                names.push(stage.name());
            }
        }
        names
    }
}

fn is_parquet(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "parquet")
}

fn unicode(path: &Path) -> Result<String> {
    Ok(path.to_str().with_context(|| format!("{} is not Unicode", path.display()))?.to_string())
}
