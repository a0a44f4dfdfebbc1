//! The files of a run folder, which is not trusted.
//!
//! Names in its records are checked when they are read. A symbolic link, or anything else that is neither a folder nor
//! a regular file, is an error and is never followed. Temporary names cannot be predicted. Only files that the records
//! list are removed, never a folder with everything in it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, FileType, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use tempfile::{Builder, NamedTempFile, TempDir};

/// Marks a folder as a run's.
pub const MARKER: &str = ".self-repair-run";

/// Names of locks begin so.
pub const LOCK: &str = ".lock";

/// Held by who writes the report.
pub const REPORT_LOCK: &str = ".report.lock";

/// Everything else that a run writes lies in these.
pub const OWNED: [&str; 8] = ["tables", "stages", "model", "work", "sums", "activations", "report", "figures"];

/// Folder of a run that is to replace the one in the folder above.
pub const REPLACEMENT: &str = "replacement";

/// Bytes of the longest record that is read, which lists more than a million files.
const LONGEST_RECORD: u64 = 256 << 20;

const TEMPORARY: &str = ".partial";
/// Characters of a temporary name that are drawn at random.
const RANDOM: usize = 12;
/// Folders in which `export` works begin so.
const SCRATCH: &str = "export.";
/// What files end with that older versions wrote under temporary names without random characters.
const ENDINGS: [&str; 9] = ["parquet", "arrow", "f64", "sums", "json", "sha256", "svg", "png", "html"];

/// Whether a name in a record is one that this program could have written: folders and a file below the run folder.
///
/// # Errors
/// If the name leads out of the run folder.
pub fn is_plain(record: &str, name: &str) -> Result<bool> {
    ensure!(
        !name.starts_with('/') && name.split('/').all(|part| part != ".."),
        "{record} lists `{}`, which is outside the run folder; something other than this program changed the folder: \
        choose another --out",
        name.escape_debug()
    );
    let is_part = |part: &str| !part.is_empty() && part != "." && !part.contains(|c: char| c.is_control());
    // Bytes that are no text were replaced by that character.
    Ok(name.split('/').all(is_part) && !name.contains('\u{fffd}'))
}

/// # Errors
/// If tables in a folder of that path could not be read: what comes later takes text without control characters.
pub fn check_path(root: &Path) -> Result<()> {
    let absolute = root.canonicalize().or_else(|_| std::path::absolute(root));
    let absolute = absolute.with_context(|| format!("the folder {root:?} cannot be used"))?;
    let usable = absolute.to_str().is_some_and(|text| !text.contains(|c: char| c.is_ascii_control()));
    ensure!(usable, "the folder {absolute:?} cannot hold a run: its path must be UTF-8 without control characters");
    Ok(())
}

/// # Errors
/// If a run's file or folder, or anything below one, is a symbolic link, or neither a folder nor a regular file.
pub fn refuse_links(root: &Path) -> Result<()> {
    let Some(entries) = entries(root)? else { return Ok(()) };
    for (path, kind) in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if OWNED.contains(&&*name) || name == REPLACEMENT {
            check_kind(&path, kind)?;
            refuse_links_below(&path)?;
        } else if name == MARKER || name == REPORT_LOCK || name == LOCK || name.starts_with(&format!("{LOCK}.")) {
            check_kind(&path, kind)?;
        }
    }
    Ok(())
}

/// As [`refuse_links`], of everything below a folder.
pub fn refuse_links_below(folder: &Path) -> Result<()> {
    for (path, kind) in walk(folder)? {
        check_kind(&path, kind)?;
    }
    Ok(())
}

/// # Errors
/// If it is neither a folder nor a regular file.
pub fn check_kind(path: &Path, kind: FileType) -> Result<()> {
    if kind.is_symlink() {
        let target = fs::read_link(path).map(|t| format!(" to {t:?}")).unwrap_or_default();
        bail!(
            "{} is a symbolic link{target}; there may be none below a run folder (the folder itself may be one): remove \
             it or choose another --out",
            path.display()
        );
    }
    ensure!(
        kind.is_dir() || kind.is_file(),
        "{} is {}, but a run folder may hold only folders and regular files: remove it or choose another --out",
        path.display(),
        kind_name(kind)
    );
    Ok(())
}

/// What it is, if it is no regular file.
pub(crate) fn kind_name(kind: FileType) -> &'static str {
    match kind {
        k if k.is_fifo() => "a FIFO",
        k if k.is_socket() => "a socket",
        k if k.is_dir() => "a folder",
        k if k.is_symlink() => "a symbolic link",
        _ => "a device",
    }
}

/// What lies in a folder. `None` if the folder is not there.
fn entries(folder: &Path) -> Result<Option<Vec<(PathBuf, FileType)>>> {
    let gone = |e: &io::Error| matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
    let entries = match fs::read_dir(folder) {
        Err(e) if gone(&e) => return Ok(None),
        other => other.with_context(|| format!("cannot read {}", folder.display()))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {}", folder.display()))?;
        match entry.file_type() {
            // Another process may have renamed it.
            Err(e) if gone(&e) => {}
            kind => {
                found.push((entry.path(), kind.with_context(|| format!("cannot read {}", entry.path().display()))?))
            }
        }
    }
    Ok(Some(found))
}

/// Everything below a folder but folders, sorted. Links are listed and not followed.
pub fn walk(folder: &Path) -> Result<Vec<(PathBuf, FileType)>> {
    let (mut found, mut pending) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(folder) = pending.pop() {
        for (path, kind) in entries(&folder)?.unwrap_or_default() {
            match kind.is_dir() {
                true => pending.push(path),
                false => found.push((path, kind)),
            }
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// Whether it is a regular file and no link to one.
pub fn is_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.is_file())
}

/// Opens a file to read it; links are followed. A FIFO, a device, a socket or a folder is an error, not a wait.
pub fn open_regular(path: &Path) -> io::Result<File> {
    regular(fs::metadata(path)?.file_type())?;
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    regular(file.metadata()?.file_type())?;
    Ok(file)
}

/// Opens a file of a run folder. A link is an error.
pub fn open_own(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    match fs::symlink_metadata(path) {
        Ok(there) => regular(there.file_type())?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    regular(file.metadata()?.file_type())?;
    Ok(file)
}

/// As [`open_own`], to change a file without replacing it: it must have no second name, under which it would change too.
pub fn open_to_change(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let file = open_own(path, options)?;
    match file.metadata()?.nlink() {
        0 | 1 => Ok(file),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is hard-linked to another file; remove it")),
    }
}

/// What a file of a run folder holds.
pub fn read_own(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut open_own(path, OpenOptions::new().read(true))?, &mut bytes)?;
    Ok(bytes)
}

/// As [`read_own`], of what is never long: a record, a lock, a configuration.
///
/// # Errors
/// If it has more than 256 MiB: a file may say that it is as long as it likes.
pub fn read_record(path: &Path) -> io::Result<Vec<u8>> {
    let file = open_own(path, OpenOptions::new().read(true))?;
    let mut bytes = Vec::new();
    if file.metadata()?.len() <= LONGEST_RECORD {
        io::Read::read_to_end(&mut io::Read::take(file, LONGEST_RECORD + 1), &mut bytes)?;
        if bytes.len() as u64 <= LONGEST_RECORD {
            return Ok(bytes);
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("it has more than {LONGEST_RECORD} bytes")))
}

fn regular(kind: FileType) -> io::Result<()> {
    match kind.is_file() {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("it is {}; expected a regular file", kind_name(kind)),
        )),
    }
}

/// A new file beside `path`, under a name that cannot be predicted. It is removed when dropped, unless it was given a name.
pub fn create_beside(path: &Path) -> io::Result<NamedTempFile> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut prefix = path.file_name().unwrap_or_default().to_owned();
    prefix.push(".");
    let mut builder = Builder::new();
    builder.prefix(&prefix).suffix(TEMPORARY).rand_bytes(RANDOM).permissions(Permissions::from_mode(0o666));
    builder.tempfile_in(folder)
}

/// A new folder in `folder` under a name that cannot be predicted; removed with its files when dropped.
pub fn scratch_in(folder: &Path) -> io::Result<TempDir> {
    Builder::new().prefix(SCRATCH).suffix(TEMPORARY).rand_bytes(RANDOM).tempdir_in(folder)
}

/// Whether a file has a name that this program gives while it writes.
pub fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str).and_then(|name| name.strip_suffix(TEMPORARY));
    let Some(name) = name else { return false };
    let drawn = name.rsplit_once('.').is_some_and(|(_, random)| is_random(random));
    drawn || Path::new(name).extension().and_then(OsStr::to_str).is_some_and(|e| ENDINGS.contains(&e))
}

fn is_random(text: &str) -> bool {
    text.len() == RANDOM && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// Whether a file lies in a folder of [`scratch_in`].
fn is_in_scratch(path: &Path) -> bool {
    let parent = path.parent().and_then(Path::file_name).and_then(OsStr::to_str);
    let random = parent.and_then(|name| name.strip_prefix(SCRATCH)?.strip_suffix(TEMPORARY));
    random.is_some_and(is_random)
}

/// Removes partial files of killed runs from a folder of the run: regular files with temporary names.
pub fn remove_temporary(folder: &Path) -> Result<()> {
    for (path, kind) in walk(folder)? {
        if kind.is_file() && (is_temporary(&path) || is_in_scratch(&path)) {
            remove(&path)?;
            if is_in_scratch(&path) {
                // Succeeds with the last file.
                path.parent().map(fs::remove_dir);
            }
        }
    }
    Ok(())
}

/// Removes regular files that records list, and folders that have nothing in them any more.
pub fn remove_files<'a>(root: &Path, names: impl IntoIterator<Item = &'a String>) -> Result<()> {
    let mut folders = BTreeSet::new();
    for path in names.into_iter().map(|name| root.join(name)) {
        if is_file(&path) {
            remove(&path)?;
        }
        folders.extend(path.parent().map(Path::to_path_buf));
    }
    // Those below others come last.
    folders.iter().rev().for_each(|folder| remove_empty(root, folder));
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Removes the folders below one that have nothing in them, and then the folder itself, if it is empty.
pub fn remove_empty_below(folder: &Path) -> Result<()> {
    for (path, kind) in entries(folder)?.unwrap_or_default() {
        if kind.is_dir() {
            remove_empty_below(&path)?;
        }
    }
    // One that is not empty stays.
    fs::remove_dir(folder).ok();
    Ok(())
}

/// Removes a folder that is empty, and those above it that are empty then, up to `tables` or the run folder.
pub fn remove_empty(root: &Path, folder: &Path) {
    let mut folder = folder;
    while let Ok(name) = folder.strip_prefix(root) {
        let stays = name.as_os_str().is_empty() || name == Path::new("tables") || name == Path::new("stages");
        if stays || fs::remove_dir(folder).is_err() {
            return;
        }
        let Some(parent) = folder.parent() else { return };
        folder = parent;
    }
}

/// Files in folders of a run that are not the run's: somebody else put them there. `is_known` tells of a name below the
/// run folder. Hidden files, which file managers leave, do not count: no file of a run is called so.
pub fn foreign(root: &Path, folders: &[PathBuf], is_known: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in folders {
        for (path, _) in walk(folder)? {
            let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
            let is_temporary = is_temporary(&path) || is_in_scratch(&path);
            let name = path.strip_prefix(root).ok().and_then(Path::to_str);
            if !hidden && !is_temporary && !name.is_some_and(&is_known) {
                found.push(path);
            }
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn names_that_lead_out_are_refused_and_odd_ones_are_not_plain() {
        for name in ["tables/tokens/tokens.parquet", "model/weights.bin", "figures/..x.svg", "report/a b.html"] {
            assert!(is_plain("r", name).unwrap(), "{name}");
        }
        for name in ["", "tables//x", "./x", "tables/./x", "tables/", "a\u{10}b", "a\nb", "a\u{fffd}b"] {
            assert!(!is_plain("r", name).unwrap(), "{name:?}");
        }
        for name in ["/etc/passwd", "..", "../x", "tables/../../x", "tables/x/..", "//x"] {
            let error = is_plain("stages/corpus.json", name).unwrap_err().to_string();
            assert!(error.contains("stages/corpus.json lists") && error.contains(name), "{error}");
        }
    }

    #[test]
    fn links_and_special_files_are_found_wherever_they_lie() {
        let elsewhere = tempfile::tempdir().unwrap();
        let places = [
            ".lock",
            ".lock.1-of-2",
            ".report.lock",
            MARKER,
            "tables",
            "tables/x",
            "tables/x/0.parquet",
            "stages",
            "stages/corpus.json",
            "stages/corpus.json.partial",
            "stages/trace.sha256",
            "model",
            "model/weights.bin",
            "work",
            "report",
            "report/index.html",
            "figures",
            "figures/a/b.svg",
            "sums",
            "activations",
        ];
        for place in places {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(place);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            // A link to a folder, to nothing, and a socket.
            symlink(elsewhere.path(), &path).unwrap();
            let error = refuse_links(dir.path()).unwrap_err().to_string();
            assert!(error.contains(place) && error.contains("is a symbolic link"), "{error}");
            fs::remove_file(&path).unwrap();
            symlink("nothing", &path).unwrap();
            assert!(refuse_links(dir.path()).is_err(), "{place}");
            fs::remove_file(&path).unwrap();
            let _socket = UnixListener::bind(&path).unwrap();
            let error = refuse_links(dir.path()).unwrap_err().to_string();
            assert!(error.contains(place) && error.contains("is a socket"), "{error}");
        }
        // The folder itself may be a link, and what is none of the run's too.
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("out/tables")).unwrap();
        symlink(elsewhere.path(), dir.path().join("out/data")).unwrap();
        symlink("out", dir.path().join("link")).unwrap();
        refuse_links(&dir.path().join("link")).unwrap();
        refuse_links(&dir.path().join("nothing")).unwrap();
    }

    #[test]
    fn what_is_no_regular_file_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link, socket) = (dir.path().join("file"), dir.path().join("link"), dir.path().join("socket"));
        fs::write(&file, "text").unwrap();
        symlink(&file, &link).unwrap();
        let _socket = UnixListener::bind(&socket).unwrap();
        assert!(open_regular(&file).is_ok() && open_regular(&link).is_ok());
        for path in [dir.path(), &socket, Path::new("/dev/zero")] {
            assert!(open_regular(path).unwrap_err().to_string().contains("expected a regular file"), "{path:?}");
        }
        let write = || OpenOptions::new().create(true).append(true).clone();
        assert!(open_own(&file, &mut write()).is_ok());
        assert!(open_own(&link, &mut write()).unwrap_err().to_string().contains("is a symbolic link"));
        fs::hard_link(&file, dir.path().join("other")).unwrap();
        assert!(open_to_change(&file, &mut write()).unwrap_err().to_string().contains("hard-linked"));
    }

    #[test]
    fn a_record_as_long_as_a_disk_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("corpus.json");
        fs::write(&path, "{}").unwrap();
        assert_eq!(read_record(&path).unwrap(), b"{}");
        File::options().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(read_record(&path).unwrap_err().to_string().contains("more than"));
    }

    #[test]
    fn only_what_is_listed_or_has_a_temporary_name_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let (ours, scratch) = (root.join("tables/x"), root.join("tables/x/export.abcdef012345.partial"));
        fs::create_dir_all(&scratch).unwrap();
        fs::create_dir(root.join("tables/y")).unwrap();
        let files = [
            "0.parquet",
            "1.parquet",
            "2.parquet.partial",
            "3.parquet.aB3dE6gH9jK2.partial",
            "film.mkv.partial",
            ".hidden",
            "export.abcdef012345.partial/graph.onnx",
        ];
        files.iter().for_each(|name| fs::write(ours.join(name), "").unwrap());
        fs::write(root.join("tables/y/0.parquet"), "").unwrap();
        let kept = create_beside(&ours.join("4.parquet")).unwrap();
        assert!(is_temporary(kept.path()), "{:?}", kept.path());
        let known = BTreeSet::from(["tables/x/0.parquet".to_string(), "tables/y/0.parquet".to_string()]);
        let strange = foreign(root, std::slice::from_ref(&ours), |name| known.contains(name)).unwrap();
        assert_eq!(strange, [ours.join("1.parquet"), ours.join("film.mkv.partial")]);
        remove_temporary(&ours).unwrap();
        remove_files(root, &known).unwrap();
        let left: Vec<PathBuf> = walk(root).unwrap().into_iter().map(|f| f.0).collect();
        assert_eq!(left, [ours.join(".hidden"), ours.join("1.parquet"), ours.join("film.mkv.partial")]);
        assert!(!scratch.exists() && !root.join("tables/y").exists() && root.join("tables").exists());
    }
}
