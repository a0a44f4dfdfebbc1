//! The folder of a comparison. It may hold only files that a report wrote.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::files::put;
use selfrepair_core::own_files;

/// Lists, one a line, the files that reports wrote into the folder and may overwrite.
const RECORD: &str = ".self-repair-report";

/// Checks that the folder is new, empty, or that of an earlier comparison.
///
/// # Errors
/// If it holds anything that no report wrote; links count as such.
pub fn check(folder: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    ensure!(folder.is_dir(), "--to {} is not a folder; name a new or an empty one", folder.display());
    let paths = [entries(folder)?, entries(&folder.join("figures")).unwrap_or_default()].concat();
    // Read afterwards: another report records a file before it writes it.
    let known = recorded(folder);
    for path in paths {
        let name = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned();
        // What has gone was a temporary file.
        let Ok(kind) = fs::symlink_metadata(&path).map(|m| m.file_type()) else { continue };
        let is_own = match name.as_str() {
            "figures" => kind.is_dir(),
            name => kind.is_file() && (name == RECORD || known.contains(name) || is_temporary(name, &known)),
        };
        if !is_own {
            bail!(
                "--to {} holds {name}, which is not a report's; name a new or an empty folder, or move it away",
                folder.display()
            );
        }
    }
    Ok(())
}

/// Records what a report is about to write, besides what is recorded already.
pub fn record(folder: &Path, files: impl IntoIterator<Item = String>) -> Result<()> {
    let mut known = recorded(folder);
    known.extend(files);
    let lines: String = known.iter().map(|name| format!("{name}\n")).collect();
    put(&folder.join(RECORD), lines.as_bytes())
}

fn recorded(folder: &Path) -> BTreeSet<String> {
    let bytes = own_files::read_record(&folder.join(RECORD)).unwrap_or_default();
    String::from_utf8_lossy(&bytes).lines().map(str::to_string).collect()
}

/// Whether it is a file that another report is writing just now: named after what it will be called.
fn is_temporary(name: &str, known: &BTreeSet<String>) -> bool {
    let becomes = |known: &str| {
        let hidden = known.rsplit_once('/').map_or_else(|| format!(".{known}"), |(at, file)| format!("{at}/.{file}"));
        [known, hidden.as_str()].iter().any(|known| name.strip_prefix(known).is_some_and(|rest| rest.starts_with('.')))
    };
    becomes(RECORD) || known.iter().any(|known| becomes(known))
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_a_report_may_be_written_again_and_one_of_anything_else_may_not() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("to");
        check(&to).unwrap();
        fs::create_dir(&to).unwrap();
        check(&to).unwrap();
        record(&to, ["index.html".to_string(), "figures/a.svg".to_string()]).unwrap();
        fs::create_dir(to.join("figures")).unwrap();
        for own in ["index.html", "figures/a.svg", "figures/a.svg.x7f3.partial", ".self-repair-report.123"] {
            fs::write(to.join(own), "").unwrap();
        }
        check(&to).unwrap();
        record(&to, ["figures/b.svg".to_string()]).unwrap();
        check(&to).unwrap();
        for foreign in ["notes.txt", "figures/mine.png", "index.htm", "figures/c.svg"] {
            fs::write(to.join(foreign), "mine").unwrap();
            let error = check(&to).unwrap_err().to_string();
            assert!(error.contains(foreign) && error.contains("not a report's"), "{error}");
            fs::remove_file(to.join(foreign)).unwrap();
        }
        fs::create_dir(to.join("data")).unwrap();
        assert!(check(&to).unwrap_err().to_string().contains("holds data"));
    }

    #[test]
    fn a_page_that_no_report_recorded_is_someone_elses() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("index.html"), "my homepage").unwrap();
        assert!(check(dir.path()).unwrap_err().to_string().contains("holds index.html"));
        let file = dir.path().join("index.html");
        assert!(check(&file).unwrap_err().to_string().contains("is not a folder"));
    }

    #[cfg(unix)]
    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (to, elsewhere) = (dir.path().join("to"), dir.path().join("elsewhere"));
        fs::create_dir(&to).unwrap();
        fs::create_dir(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, to.join("figures")).unwrap();
        assert!(check(&to).unwrap_err().to_string().contains("holds figures"));
        fs::remove_file(to.join("figures")).unwrap();
        fs::write(elsewhere.join("list"), "index.html\n").unwrap();
        std::os::unix::fs::symlink(elsewhere.join("list"), to.join(RECORD)).unwrap();
        assert!(check(&to).is_err());
    }
}
