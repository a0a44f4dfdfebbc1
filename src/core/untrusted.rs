//! Reads untrusted bytes: catches panics of libraries, and refuses paths that are not regular files.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Seek};
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
    let mut file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).with_context(name)?;
    let metadata = file.metadata().with_context(name)?;
    ensure!(metadata.is_file(), "cannot read {}: it is not a regular file", path.display());
    ensure!(
        metadata.len() > MOST_POINTER || !is_pointer(&mut file).with_context(name)?,
        "cannot read {}: it is a pointer of git-lfs and not the file itself; run `git lfs pull` in its repository, or \
         download the file",
        path.display()
    );
    Ok(file)
}

/// What git-lfs leaves in the place of a file begins with this.
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Bytes that such a pointer has at most.
const MOST_POINTER: u64 = 1024;

fn is_pointer(file: &mut File) -> io::Result<bool> {
    let mut first = Vec::new();
    file.take(POINTER.len() as u64).read_to_end(&mut first)?;
    file.rewind()?;
    Ok(first == POINTER)
}

/// What some editors put before a text in UTF-8 (a byte order mark). It is no part of the text.
pub const MARK: &[u8] = b"\xef\xbb\xbf";

/// Why bytes that are no UTF-8 are none, if it can be told.
pub fn not_utf8(bytes: &[u8]) -> &'static str {
    match bytes {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "it is UTF-16; write it as UTF-8",
        _ => "it is not UTF-8",
    }
}

/// The bytes of a regular file of at most `most` bytes, which is a text; without [`MARK`].
pub fn read_bytes(path: &Path, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_file(path)?
        .take(most + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.len() as u64 > most {
        bail!("cannot read {}: it has more than {most} bytes, the most that such a file may have", path.display());
    }
    if bytes.starts_with(MARK) {
        bytes.drain(..MARK.len());
    }
    Ok(bytes)
}

/// The text of a regular file of at most `most` bytes.
pub fn read_text(path: &Path, most: u64) -> Result<String> {
    let text = String::from_utf8(read_bytes(path, most)?);
    text.map_err(|e| anyhow!("cannot read {}: {}", path.display(), not_utf8(e.as_bytes())))
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
    fn a_pointer_of_git_lfs_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let pointer =
            format!("version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 131072\n", "0a".repeat(32));
        std::fs::write(&path, &pointer).unwrap();
        let said = open_file(&path).unwrap_err().to_string();
        assert!(
            said.contains("model.safetensors: it is a pointer of git-lfs") && said.contains("git lfs pull"),
            "{said}"
        );
        // What only speaks of one is read from its beginning.
        for text in [format!("# {pointer}"), "version".into(), String::new()] {
            std::fs::write(&path, &text).unwrap();
            assert_eq!(read_text(&path, 1000).unwrap(), text);
        }
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text");
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            read_text(&path, 100)
        };
        assert_eq!(read(b"\xef\xbb\xbf{}").unwrap(), "{}");
        assert_eq!(read(b"\xef\xbb\xbf").unwrap(), "");
        // Only one, and only at the beginning.
        assert_eq!(read("\u{feff}\u{feff}a\u{feff}".as_bytes()).unwrap(), "\u{feff}a\u{feff}");
        for utf16 in [b"\xff\xfea\0".as_slice(), b"\xfe\xff\0a"] {
            let said = read(utf16).unwrap_err().to_string();
            assert!(said.contains("UTF-16; write it as UTF-8"), "{said}");
        }
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
