//! Reads untrusted bytes: catches panics of libraries, and refuses paths that are not regular files.

use std::cell::Cell;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::own_files::kind_name;

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread runs code whose panics are caught by [`without_panic`]. A program's panic hook asks it, so that
/// such a panic is not printed.
pub fn is_guarded() -> bool {
    GUARDED.get()
}

/// Runs code of a library on bytes from outside.
///
/// # Errors
/// Those of `read`; a panic of the library is one too.
pub fn without_panic<T>(read: impl FnOnce() -> Result<T>) -> Result<T> {
    caught(read).unwrap_or_else(|| Err(anyhow!("a part of it is malformed")))
}

/// What a library gives; nothing where it panics.
pub fn caught<T>(work: impl FnOnce() -> T) -> Option<T> {
    let outer = GUARDED.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(outer);
    result.ok()
}

/// From now on, panics of this thread count as caught: whoever waits for its work learns of them.
pub fn quiet_this_thread() {
    GUARDED.set(true);
}

/// Opens a regular file, or a link to one. A device has no end and a FIFO may have no writer, so both are errors.
pub fn open_file(path: &Path) -> Result<File> {
    let name = || format!("cannot read {}", path.display());
    let kind = std::fs::metadata(path).with_context(name)?.file_type();
    ensure!(kind.is_file(), "cannot read {}: it is {}, not a regular file", path.display(), kind_name(kind));
    // Without waiting, in case it was replaced by a FIFO since.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).with_context(name)?;
    ensure!(file.metadata().with_context(name)?.is_file(), "cannot read {}: it is not a regular file", path.display());
    Ok(file)
}

/// The bytes of a regular file of at most `most` bytes.
pub fn read_bytes(path: &Path, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_file(path)?
        .take(most + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.len() as u64 > most {
        bail!("cannot read {}: it has more than {most} bytes, the most that such a file may have", path.display());
    }
    Ok(bytes)
}

/// The text of a regular file of at most `most` bytes.
pub fn read_text(path: &Path, most: u64) -> Result<String> {
    String::from_utf8(read_bytes(path, most)?).map_err(|_| anyhow!("cannot read {}: it is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_read_and_only_so_much_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let error = |path: &Path| read_text(path, 10).unwrap_err().to_string();
        let fifo = dir.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for (path, kind) in
            [(&*fifo, "a FIFO"), (&*socket, "a socket"), (Path::new("/dev/zero"), "a device"), (dir.path(), "a folder")]
        {
            let said = error(path);
            assert!(said.contains(&format!("{}: it is {kind}", path.display())), "{said}");
        }
        let file = dir.path().join("file");
        std::fs::write(&file, "0123456789").unwrap();
        assert_eq!(read_text(&file, 10).unwrap(), "0123456789");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(read_text(&link, 10).unwrap(), "0123456789");
        std::fs::write(&file, "0123456789a").unwrap();
        assert!(error(&file).contains("more than 10 bytes"));
        std::fs::write(&file, [0xff]).unwrap();
        assert!(error(&file).contains("not UTF-8"));
        assert!(error(&dir.path().join("none")).contains("cannot read"));
    }

    #[test]
    fn a_panic_is_an_error_and_values_and_errors_are_what_they_were() {
        let nothing: [u8; 0] = [];
        let error = without_panic(|| Ok(nothing[std::hint::black_box(0)])).unwrap_err();
        assert!(error.to_string().contains("malformed"));
        assert_eq!(without_panic(|| Ok(7)).unwrap(), 7);
        assert!(without_panic::<u8>(|| anyhow::bail!("why")).unwrap_err().to_string().contains("why"));
    }
}
