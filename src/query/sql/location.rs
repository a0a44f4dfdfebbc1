//! The location of a run's tables: a folder, or a prefix in a bucket.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use datafusion::prelude::SessionContext;

use super::bucket::Bucket;
use crate::catalog;
use selfrepair_core::address;
use selfrepair_core::own_files;
use selfrepair_store::records::{ledger_name, manifest_name, parse_ledger, parse_manifest};
use selfrepair_store::run_folder::STAGES;

pub enum Place {
    Folder(PathBuf),
    Bucket(Bucket),
}

/// Which files a table has. URLs are percent-encoded.
pub struct TableFiles {
    /// The folder, which ends with a slash, if its files are the table's; else each file.
    pub urls: Vec<String>,
    /// The first file, whose schema is that of all, as a URL and for people.
    pub first: String,
    pub first_shown: String,
    /// Files that are left out: the run's records do not list them.
    pub foreign: Vec<String>,
    /// Files that the records list and that are not there.
    pub missing: Vec<String>,
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
                bail!("--out is an address ({scheme}:…); runs are read from a folder or from s3://bucket/prefix")
            }
        };
        let exists = match &place {
            Place::Bucket(_) => true,
            Place::Folder(root) => {
                own_files::check_path(root)?;
                for name in ["tables", "stages"] {
                    let path = root.join(name);
                    let there = fs::symlink_metadata(&path).ok();
                    there.map_or(Ok(()), |m| own_files::check_kind(&path, m.file_type()))?;
                }
                own_files::refuse_links_below(&root.join("stages"))?;
                root.join("tables").is_dir()
            }
        };
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
            let entry = entry?;
            let path = entry.path();
            own_files::check_kind(&path, entry.file_type()?)?;
            if path.is_dir() && fs::read_dir(&path)?.flatten().any(|f| is_parquet(&f.path())) {
                names.insert(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
            }
        }
        Ok(names)
    }

    /// The files of a table: those that the run's records list, or all if there are no records of it.
    pub async fn table(&self, name: &str) -> Result<TableFiles> {
        let (folder, found) = self.found(name).await?;
        let (listed, complete) = self.listed(name).await?.unzip();
        let is_listed = |file: &str| listed.as_ref().is_none_or(|listed: &BTreeSet<String>| listed.contains(file));
        // A file in a subfolder never belongs to the table.
        let (mine, foreign): (Vec<String>, Vec<String>) =
            found.into_iter().partition(|file| !file.contains('/') && is_listed(file));
        // A running stage lists a file just before it creates it.
        let expected = listed.iter().flatten().filter(|_| complete == Some(true));
        let there: BTreeSet<&String> = mine.iter().collect();
        let missing = expected.filter(|file| !there.contains(file)).cloned().collect();
        let Some(first) = mine.iter().min() else {
            bail!("{} has no files; has the run finished?", self.shown(name));
        };
        if let Place::Folder(root) = self {
            let folder = root.join("tables").join(name);
            for path in mine.iter().map(|file| folder.join(file)) {
                own_files::check_kind(&path, fs::symlink_metadata(&path)?.file_type())?;
            }
        }
        let url = |file: &str| format!("{folder}{}", encoded(file));
        let first_shown = format!("{}/{first}", self.shown(name));
        let first = url(first);
        let urls = if foreign.is_empty() { vec![folder.clone()] } else { mine.iter().map(|file| url(file)).collect() };
        Ok(TableFiles { urls, first, first_shown, foreign, missing })
    }

    /// The URL of a table's folder, and what lies in it that a reader would take for the table's.
    async fn found(&self, name: &str) -> Result<(String, Vec<String>)> {
        let root = match self {
            Place::Folder(root) => root,
            Place::Bucket(bucket) => return bucket.table(name).await,
        };
        let folder = root.join("tables").join(name);
        ensure!(folder.is_dir(), "{} is missing; has the run finished?", folder.display());
        own_files::check_kind(&folder, fs::symlink_metadata(&folder)?.file_type())?;
        let found = own_files::walk(&folder)?.into_iter().map(|(path, _)| path).filter(|path| is_parquet(path));
        // A name that is not Unicode is none of the run's.
        let found =
            found.filter_map(|path| Some(path.strip_prefix(&folder).ok()?.to_string_lossy().into_owned())).collect();
        let absolute = folder.canonicalize().with_context(|| format!("cannot read {}", folder.display()))?;
        Ok((format!("file://{}/", encoded(&unicode(&absolute)?)), found))
    }

    /// Whether a table has a file.
    pub async fn has_files(&self, name: &str) -> Result<bool> {
        let ((_, found), listed) = (self.found(name).await?, self.listed(name).await?);
        Ok(found.iter().any(|file| listed.as_ref().is_none_or(|listed| listed.0.contains(file))))
    }

    /// What the run's records list of a table, and whether its stage is finished; `None` if they do not know the table.
    async fn listed(&self, name: &str) -> Result<Option<(BTreeSet<String>, bool)>> {
        let (folder, prefix) = (format!("tables/{name}"), format!("tables/{name}/"));
        for stage in STAGES {
            let text = self.read(&manifest_name(stage)).await;
            // A manifest of thousands of files is parsed for its own stage's tables only.
            if text.as_ref().is_some_and(|text| !text.contains(&folder) && text.trim_end().ends_with('}')) {
                continue;
            }
            let manifest = text.map(|text| parse_manifest(stage, &text)).transpose()?.flatten();
            if let Some(manifest) = &manifest {
                if !manifest.folders.contains(&folder) {
                    continue;
                }
                if manifest.complete {
                    return Ok(Some((below(&prefix, manifest.files.iter().map(|file| &file.0)), true)));
                }
            }
            let ledger = self.read(&ledger_name(stage)).await.map(|text| parse_ledger(stage, &text)).transpose()?;
            let listed = below(&prefix, ledger.iter().flat_map(|sums| sums.keys()));
            match (manifest, ledger) {
                (Some(_), Some(_)) => return Ok(Some((listed, false))),
                // The manifest is lost.
                (None, Some(_)) if !listed.is_empty() => return Ok(Some((listed, false))),
                // A stage of an older version, which kept no checksums.
                (Some(_), None) => return Ok(None),
                _ => {}
            }
        }
        Ok(None)
    }

    fn shown(&self, name: &str) -> String {
        match self {
            Place::Folder(root) => root.join("tables").join(name).display().to_string(),
            Place::Bucket(bucket) => format!("{}/tables/{name}", bucket.url()),
        }
    }

    /// Bytes of a table's files, and their rows where they can be had without a query.
    pub async fn size(&self, name: &str) -> Result<(u64, Option<u64>)> {
        let files = self.table(name).await?;
        match self {
            Place::Folder(root) => {
                let folder = root.join("tables").join(name);
                let (_, found) = self.found(name).await?;
                let mine = found.into_iter().filter(|file| !files.foreign.contains(file));
                let paths: Vec<PathBuf> = mine.map(|file| folder.join(file)).collect();
                let bytes = paths.iter().flat_map(|p| p.metadata()).map(|m| m.len()).sum();
                Ok((bytes, Some(catalog::rows(&paths)?)))
            }
            Place::Bucket(bucket) => Ok((bucket.size(name, &files.foreign).await?, None)),
        }
    }

    /// What a file of the run holds, if it is there.
    pub async fn read(&self, relative: &str) -> Option<String> {
        let bytes = match self {
            Place::Folder(root) => own_files::read_record(&root.join(relative)).ok()?,
            Place::Bucket(bucket) => bucket.read(relative).await?,
        };
        String::from_utf8(bytes).ok()
    }

    /// The stages that were begun and not completed.
    pub async fn incomplete_stages(&self) -> Vec<&'static str> {
        let mut names = Vec::new();
        for stage in STAGES {
            let text = self.read(&manifest_name(stage)).await;
            let manifest = text.and_then(|text| parse_manifest(stage, &text).ok().flatten());
            if manifest.is_some_and(|m| !m.complete && !m.fingerprint.is_empty()) {
                names.push(stage.name());
            }
        }
        names
    }
}

/// Names of files in a folder, without it.
fn below<'a>(prefix: &str, names: impl Iterator<Item = &'a String>) -> BTreeSet<String> {
    names.filter_map(|name| name.strip_prefix(prefix)).map(str::to_string).collect()
}

fn is_parquet(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "parquet")
}

/// A path as a URL has it: neither a pattern nor a query is read into it.
fn encoded(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'/' | b'-' | b'.' | b'_' | b'~' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => out.push(byte as char),
            // Writing to a string does not fail.
            other => write!(out, "%{other:02X}").unwrap_or_default(),
        }
    }
    out
}

fn unicode(path: &Path) -> Result<String> {
    Ok(path.to_str().with_context(|| format!("{} is not Unicode", path.display()))?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::Tables;
    use selfrepair_store::test_tables::table;

    fn rows(out: &Path) -> i64 {
        let rows = Tables::open(out).unwrap().collect("select count(*) from tokens", &[]).unwrap();
        arrow::array::AsArray::as_primitive::<arrow::datatypes::Int64Type>(rows[0].column(0)).value(0)
    }

    #[test]
    fn a_path_is_no_pattern_and_no_url() {
        assert_eq!(encoded("/a b/[1]*?#%:é"), "/a%20b/%5B1%5D%2A%3F%23%25%3A%C3%A9");
        for name in
            ["seed[1]", "[", "a*b", "what?", "a#1", "50%", "%41", "a:b", "file:x", " ", "a b", "é😀", "x=1", "{a,b}"]
        {
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join(name).join("out");
            table(&out, "tokens", "prompt position token", &["0 0 1", "0 1 2"]);
            assert_eq!(rows(&out), 2, "{name}");
        }
    }

    #[test]
    fn a_table_is_what_the_records_list() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path();
        table(out, "tokens", "prompt position token", &["0 0 1", "0 1 2"]);
        let file = out.join("tables/tokens/tokens.parquet");
        let copy = out.join("tables/tokens/tokens (conflicted copy).parquet");
        fs::copy(&file, &copy).unwrap();
        assert_eq!(rows(out), 4, "without records, every file is the table's");
        let below = out.join("tables/tokens/a=1");
        fs::create_dir(&below).unwrap();
        fs::copy(&file, below.join("tokens.parquet")).unwrap();
        assert_eq!(rows(out), 4, "but none in a folder below");

        fs::create_dir(out.join("stages")).unwrap();
        let name = "tables/tokens/tokens.parquet";
        let manifest = |complete: bool| {
            let files = if complete { vec![(name, 1)] } else { vec![] };
            let manifest = serde_json::json!({
                "fingerprint": "f", "complete": complete, "files": files, "folders": ["tables/tokens"],
            });
            fs::write(out.join("stages/corpus.json"), manifest.to_string()).unwrap();
        };
        manifest(true);
        assert_eq!(rows(out), 2, "a finished stage's manifest");
        manifest(false);
        assert_eq!(rows(out), 4, "a running stage without checksums");
        fs::write(out.join("stages/corpus.sha256"), format!("{:064}  {name}\n", 0)).unwrap();
        assert_eq!(rows(out), 2, "a running stage");
        fs::write(out.join("stages/corpus.json"), "{").unwrap();
        assert_eq!(rows(out), 2, "a stage whose manifest is lost");
    }

    #[test]
    fn a_table_that_is_a_link_or_no_regular_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (out, other) = (dir.path().join("out"), dir.path().join("other"));
        let error =
            || format!("{:#}", Tables::open(&out).and_then(|t| t.collect("select * from tokens", &[])).unwrap_err());
        for place in ["tables", "tables/tokens", "tables/tokens/tokens.parquet", "stages"] {
            table(&out, "tokens", "prompt position token", &["0 0 1"]);
            fs::create_dir_all(out.join("stages")).unwrap();
            fs::rename(out.join(place), &other).unwrap();
            std::os::unix::fs::symlink(&other, out.join(place)).unwrap();
            assert!(error().contains(place) && error().contains("is a symbolic link"), "{place}: {}", error());
            fs::remove_dir_all(&out).unwrap();
            fs::remove_dir_all(&other).or_else(|_| fs::remove_file(&other)).unwrap();
        }
        fs::create_dir_all(out.join("tables/tokens")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(out.join("tables/tokens/tokens.parquet")).unwrap();
        assert!(error().contains("is a socket"), "{}", error());
    }
}
