//! Checks a PyTorch file before any tensor is read from it.
//!
//! A pickle is a program: it can name any function and call it. candle only builds a description of those calls, but it
//! skips entries that are not tensors, so a malicious file would only seem to lack a tensor. Such a file is refused
//! here, and the error names the function that it would have called.
//!
//! A pickle can also nest without end and copy its objects any number of times. [`measure`] therefore runs the program
//! first, with sizes in place of objects, and refuses it before candle builds anything.

mod measure;

use std::collections::BTreeSet;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::pickle::{Object, Stack};

use measure::measure;
use selfrepair_core::untrusted::open_file;

/// A pickle says where tensors lie and has none of their numbers: large models' are below a megabyte.
const MOST_BYTES: u64 = 64 << 20;

/// Refuses a file whose pickle is more than a description of tensors, each of which is there once.
pub fn check_pickle(path: &Path) -> Result<()> {
    let bytes = read_pickle(path)?;
    let place = || format!("{} is not a complete PyTorch file of plain tensors", path.display());
    measure(&bytes).with_context(|| format!("{}: its pickle is refused", path.display()))?;
    let mut reader = &bytes[..];
    let mut stack = Stack::empty();
    while !stack.read(&mut reader).with_context(place)? {
        // A name is on top of the stack right after it was read, whatever becomes of it later.
        if let Some(Object::Class { module_name, class_name }) = stack.stack().last() {
            ensure!(
                builds_tensors(module_name, class_name),
                "{}: its pickle would call `{module_name}.{class_name}`, which is no part of a tensor. Nothing of it was \
                 executed; do not load this file with other programs",
                path.display()
            );
        }
    }
    check_tensors(&stack.finalize().with_context(place)?).with_context(|| path.display().to_string())
}

/// The pickle inside the zip archive that PyTorch writes.
fn read_pickle(path: &Path) -> Result<Vec<u8>> {
    let place = || format!("{} is not a complete PyTorch file of plain tensors", path.display());
    let mut file = open_file(path)?;
    let mut first = Vec::new();
    (&mut file).take(BEFORE_ZIP.len() as u64).read_to_end(&mut first).with_context(place)?;
    ensure!(
        first != BEFORE_ZIP,
        "{}: it has the format of PyTorch before 1.6, which is not read; write it again with a newer one: \
         torch.save(torch.load(FILE, weights_only=True), FILE)",
        path.display()
    );
    file.rewind().with_context(place)?;
    let mut archive = zip::ZipArchive::new(BufReader::new(file)).with_context(place)?;
    let mut found = None;
    for i in 0..archive.len() {
        let entry = archive.by_index(i).with_context(place)?;
        if !entry.is_file() || !entry.name().with_context(place)?.ends_with("data.pkl") {
            continue;
        }
        ensure!(found.is_none(), "{}: it has two pickles; expected one", path.display());
        let mut bytes = Vec::new();
        entry.take(MOST_BYTES + 1).read_to_end(&mut bytes).with_context(place)?;
        ensure!(bytes.len() as u64 <= MOST_BYTES, "{}: its pickle is too large for a model", path.display());
        found = Some(bytes);
    }
    found.context("there is no data.pkl in it").with_context(place)
}

/// A pickle of the number 0x1950a86a20f9469cfc6c, with which files began before they were zip archives (torch:
/// `MAGIC_NUMBER` in `serialization.py`).
const BEFORE_ZIP: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

fn builds_tensors(module: &str, name: &str) -> bool {
    match module {
        "torch._utils" => ["_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"].contains(&name),
        "torch" => name.ends_with("Storage") || name == "Size",
        "torch.storage" => ["TypedStorage", "UntypedStorage"].contains(&name),
        "collections" => name == "OrderedDict",
        _ => false,
    }
}

/// No tensor is there twice, and none begins before its storage does (candle takes a negative offset for a large one).
fn check_tensors(object: &Object) -> Result<()> {
    let Object::Dict(entries) = object else { return Ok(()) };
    let mut names = BTreeSet::new();
    for (key, value) in entries {
        let Object::Unicode(name) = key else { continue };
        ensure!(names.insert(name), "the tensor `{name}` is there twice");
        if let Some(offset) = offset(value)
            && offset < 0
        {
            bail!("the tensor `{name}` begins at element {offset} of its storage");
        }
    }
    Ok(())
}

/// The second argument of `_rebuild_tensor_v2`, also inside `_rebuild_parameter`.
fn offset(value: &Object) -> Option<i64> {
    let Object::Reduce { args, .. } = value else { return None };
    let Object::Tuple(args) = &**args else { return None };
    match (args.first()?, args.get(1)) {
        (inner @ Object::Reduce { .. }, _) => offset(inner),
        (_, Some(Object::Int(n))) => Some(i64::from(*n)),
        (_, Some(Object::Long(n))) => Some(*n),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_tensors_are_built_of_may_be_named() {
        let fixtures = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/pickles"));
        check_pickle(&fixtures.join("single/pytorch_model.bin")).unwrap();
        let error = check_pickle(&fixtures.join("evil/pytorch_model.bin")).unwrap_err().to_string();
        assert!(error.contains("would call `posix.system`"), "{error}");
        assert!(!builds_tensors("torch", "load") && !builds_tensors("builtins", "eval"));
    }

    #[test]
    fn a_file_of_old_pytorch_is_called_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pytorch_model.bin");
        // What `torch.save(…, _use_new_zipfile_serialization=False)` begins with: the number, and the protocol 1001.
        std::fs::write(&path, [BEFORE_ZIP, b"\x80\x02M\xe9\x03."].concat()).unwrap();
        let error = format!("{:#}", check_pickle(&path).unwrap_err());
        assert!(error.contains("PyTorch before 1.6") && error.contains("torch.save"), "{error}");
    }

    fn check(pickle: &[u8]) -> Result<()> {
        let mut reader = pickle;
        let mut stack = Stack::empty();
        measure(pickle)?;
        stack.read_loop(&mut reader)?;
        check_tensors(&stack.finalize()?)
    }

    #[test]
    fn a_tensor_that_is_there_twice_or_begins_before_its_storage_is_refused() {
        // {"a": f(None, offset)} with f = torch._utils._rebuild_tensor_v2
        let entry = |offset: i32| {
            let mut out = b"X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\nNJ".to_vec();
            out.extend(offset.to_le_bytes());
            out.extend(b"\x86R");
            out
        };
        let dict = |entries: &[Vec<u8>]| [b"\x80\x02}(".as_slice(), &entries.concat(), b"u."].concat();
        check(&dict(&[entry(0)])).unwrap();
        let error = check(&dict(&[entry(0), entry(8)])).unwrap_err().to_string();
        assert!(error.contains("`a` is there twice"), "{error}");
        let error = check(&dict(&[entry(-1)])).unwrap_err().to_string();
        assert!(error.contains("element -1"), "{error}");
    }
}
