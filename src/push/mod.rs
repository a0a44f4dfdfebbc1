//! Pushes a finished run to a data set of the Hugging Face hub: its tables, a card that makes them loadable with
//! `datasets.load_dataset(name, "head_summary")`, its configuration, the description of its columns, and its report.

mod card;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use selfrepair_core::files::{sha256_of, sha256_of_file};
use selfrepair_core::own_files;
use selfrepair_core::plain::visible;
use selfrepair_core::progress;
use selfrepair_model::hub;
use selfrepair_model::hub::{Content, DataSet, Pushed, Upload};
use selfrepair_query::catalog;
use selfrepair_query::catalog::TableDoc;
use selfrepair_query::sql::Tables;
use selfrepair_store::records;
use selfrepair_store::run_folder;
use selfrepair_store::run_folder::STAGES;

/// Folders of a run that go to the hub, and are there as they are here. The rest is large and can be made again.
const FOLDERS: [&str; 2] = ["tables", "figures"];

/// Files of the report that go to the hub, with their names there.
const OF_REPORT: [(&str, &str); 2] = [("report/config.toml", "config.toml"), ("report/index.html", "report.html")];

/// What a push is asked to do.
pub struct Push<'a> {
    /// Folder of the run.
    pub out: &'a Path,
    /// `hf:owner/name`
    pub to: &'a str,
    /// A data set that is created is private.
    pub private: bool,
    /// Lists what would be sent and sends nothing.
    pub dry_run: bool,
}

/// Pushes a run; what was done, as a sentence.
///
/// # Errors
/// If the run is not finished, one of its files is not a regular file, there is no token, or the hub refuses.
pub fn push(asked: &Push) -> Result<String> {
    let Push { out, to, private, dry_run } = *asked;
    let Some(name) = to.strip_prefix("hf:") else {
        bail!("`{to}` is not a push target; expected hf:owner/name, a data set of the hub");
    };
    hub::check_data_set(name)?;
    run_folder::check(out)?;
    finished(out)?;
    let files = files(out, name)?;
    let list = list(&files, &foreign(out, &files)?, name)?;
    if dry_run {
        return Ok(format!("{list}nothing was sent"));
    }
    std::io::stderr().write_all(list.as_bytes()).ok();
    let set = DataSet::open(name, private)?;
    let bar = progress::bar("push", 0, "kB");
    let message = format!("Tables of a run by pipeline {}", env!("CARGO_PKG_VERSION"));
    let pushed = set.push(&files, &FOLDERS, &message, &bar);
    bar.finish();
    Ok(sentence(&pushed?, name))
}

fn finished(out: &Path) -> Result<()> {
    ensure!(run_folder::is_run(out), "{} is not a run of this program; name one with --out", out.display());
    let missing = STAGES.iter().filter(|&&s| !run_folder::manifest(out, s).is_some_and(|m| m.complete));
    let missing: Vec<&str> = missing.map(|s| s.name()).collect();
    ensure!(
        missing.is_empty(),
        "the run in {} is not finished ({} missing); finish it with `pipeline run all`",
        out.display(),
        missing.join(", ")
    );
    Ok(())
}

/// Everything that goes to the hub: what the run's own records say that it wrote.
fn files(out: &Path, name: &str) -> Result<Vec<Upload>> {
    let recorded = recorded(out)?;
    for (file, _) in OF_REPORT {
        ensure!(
            recorded.contains(file),
            "{} is not among the files that the run wrote; write the report with `pipeline run report`",
            out.join(file).display()
        );
    }
    let path = regular(out, OF_REPORT[0].0)?;
    let config = own_files::read_record(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let config = String::from_utf8(config).with_context(|| format!("{} is not UTF-8", path.display()))?;
    let tables = Tables::open(out)?;
    let is_sent = |table: &TableDoc| recorded.iter().any(|file| table_of(file) == Some(table.name.as_str()));
    let sent: Vec<TableDoc> = catalog::tables_of_run(&tables)?.into_iter().filter(is_sent).collect();
    let mut files = vec![
        text("README.md", card::card(&tables, &sent, &config, name)?),
        text("config.toml", config),
        text("tables.md", catalog::markdown_of(sent)?),
        file("report.html", &regular(out, OF_REPORT[1].0)?)?,
    ];
    for relative in recorded.iter().filter(|file| is_in_folders(file)) {
        files.push(file(relative, &regular(out, relative)?)?);
    }
    Ok(files)
}

/// The name of the table that a file belongs to.
fn table_of(file: &str) -> Option<&str> {
    Some(file.strip_prefix("tables/")?.split_once('/')?.0)
}

fn is_in_folders(file: &str) -> bool {
    FOLDERS.iter().any(|folder| file.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/')))
}

/// Paths of the files that the stages recorded, below the run folder.
///
/// # Errors
/// If a record names something that is not below the folder.
fn recorded(out: &Path) -> Result<BTreeSet<String>> {
    let mut files = BTreeSet::new();
    for stage in STAGES {
        let manifest = records::any_manifest(out, stage)?;
        files.extend(manifest.map(|m| m.files).unwrap_or_default().into_iter().map(|(file, _)| file));
    }
    Ok(files)
}

/// The path of a file of the run, which is a regular one in folders that are no links.
fn regular(out: &Path, relative: &str) -> Result<PathBuf> {
    let mut path = out.to_path_buf();
    for part in relative.split('/') {
        path.push(part);
        let kind = fs::symlink_metadata(&path).with_context(|| {
            format!(
                "{} cannot be read, though the run wrote it; write it again with `pipeline run all`",
                path.display()
            )
        })?;
        ensure!(
            !kind.is_symlink(),
            "{} is a link; only regular files of the run itself are sent, so replace it by the file it points to",
            path.display()
        );
    }
    ensure!(path.is_file(), "{} is not a regular file; only regular files are sent", path.display());
    Ok(path)
}

/// What lies in the folders that are sent and is not of the run: it stays here. Links are not followed.
fn foreign(out: &Path, files: &[Upload]) -> Result<Vec<String>> {
    let known: BTreeSet<&str> = files.iter().map(|f| f.path.as_str()).collect();
    let mut foreign = Vec::new();
    let mut folders: Vec<String> = FOLDERS.map(String::from).to_vec();
    while let Some(folder) = folders.pop() {
        let path = out.join(&folder);
        if !fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir()) {
            continue;
        }
        for entry in fs::read_dir(&path).with_context(|| format!("cannot read {}", path.display()))? {
            let entry = entry?;
            let name = format!("{folder}/{}", entry.file_name().to_string_lossy());
            match entry.file_type()?.is_dir() {
                true => folders.push(name),
                false if known.contains(name.as_str()) => {}
                false => foreign.push(name),
            }
        }
    }
    foreign.sort();
    Ok(foreign)
}

/// What is sent, and what is not.
fn list(files: &[Upload], foreign: &[String], name: &str) -> Result<String> {
    let total = files.iter().map(|f| f.size).sum();
    let mut list = format!("to hf:{name}: {} files, {}\n", files.len(), progress::bytes(total));
    for file in files {
        writeln!(list, "{:>10}  {}", progress::bytes(file.size), visible(&file.path))?;
    }
    for file in foreign {
        // It may have any name.
        writeln!(list, "  not sent  {} (the run did not write it)", visible(file))?;
    }
    Ok(list)
}

fn text(path: &str, text: String) -> Upload {
    let (size, sha256) = (text.len() as u64, sha256_of(text.as_bytes()));
    Upload { path: path.into(), content: Content::Text(text), size, sha256 }
}

fn file(path: &str, from: &Path) -> Result<Upload> {
    let size = fs::metadata(from).with_context(|| format!("cannot read {}", from.display()))?.len();
    Ok(Upload { path: path.into(), content: Content::File(from.into()), size, sha256: sha256_of_file(from)? })
}

fn sentence(pushed: &Pushed, name: &str) -> String {
    let Pushed { committed, stored, unchanged, deleted, url } = pushed;
    let gone = if *deleted == 0 { String::new() } else { format!(", {deleted} deleted") };
    let what = match (committed, deleted) {
        (0, 0) => format!("hf:{name} has all {unchanged} files already"),
        _ => format!(
            "hf:{name}: {committed} files ({} uploaded){gone}, {unchanged} were there already",
            progress::bytes(*stored)
        ),
    };
    format!("{what}\n{url}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_at_any_level_is_named_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (out, elsewhere) = (dir.path().join("out"), dir.path().join("elsewhere"));
        fs::create_dir_all(out.join("tables/tokens")).unwrap();
        fs::create_dir_all(&elsewhere).unwrap();
        fs::write(elsewhere.join("a"), "secret").unwrap();
        fs::write(out.join("tables/tokens/0.parquet"), "x").unwrap();
        assert!(regular(&out, "tables/tokens/0.parquet").is_ok());
        std::os::unix::fs::symlink(&elsewhere, out.join("tables/linked")).unwrap();
        std::os::unix::fs::symlink(elsewhere.join("a"), out.join("tables/tokens/a")).unwrap();
        for file in ["tables/linked/a", "tables/tokens/a"] {
            assert!(regular(&out, file).unwrap_err().to_string().contains("is a link"), "{file}");
        }
        assert!(regular(&out, "tables/tokens").unwrap_err().to_string().contains("not a regular file"));
        assert!(regular(&out, "tables/tokens/none").is_err());
        // The folder of the run may be one.
        std::os::unix::fs::symlink(&out, dir.path().join("run")).unwrap();
        assert!(regular(&dir.path().join("run"), "tables/tokens/0.parquet").is_ok());
        assert_eq!(foreign(&out, &[]).unwrap(), ["tables/linked", "tables/tokens/0.parquet", "tables/tokens/a"]);
    }

    #[test]
    fn names_are_listed_as_text_on_one_line() {
        let files = [text("tables/a\u{202e}b", String::new())];
        let list = list(&files, &["figures/a\nb\u{1b}\u{2066}".to_string()], "me/x").unwrap();
        assert!(list.contains("tables/a\\u{202e}b") && list.contains("figures/a\\nb\\u{1b}\\u{2066}"), "{list}");
        assert_eq!(list.lines().count(), 3);
    }

    #[test]
    fn records_that_name_files_elsewhere_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("stages")).unwrap();
        let write = |name: &str| {
            let files = [[name.into(), serde_json::json!(1)]];
            let manifest = serde_json::json!({ "fingerprint": "f", "complete": true, "files": files });
            fs::write(dir.path().join("stages/corpus.json"), manifest.to_string()).unwrap();
        };
        for name in ["../x", "/etc/hostname", "tables/../../x"] {
            write(name);
            assert!(recorded(dir.path()).unwrap_err().to_string().contains("outside the run folder"), "{name:?}");
        }
        for name in ["tables//x", "tables/./x", "a\nb", "", "notes.txt"] {
            write(name);
            assert!(recorded(dir.path()).unwrap().is_empty(), "{name:?}");
        }
    }
}
