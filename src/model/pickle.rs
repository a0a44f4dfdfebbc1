//! What a PyTorch file is made of, before any tensor is read from it.
//!
//! A pickle is a program: it can name any function and have it called. candle builds a description of those calls and
//! makes none, but it also passes over entries that are no tensors, so that a file that was made to do harm would only
//! seem to lack one. Such a file is refused here by the name of what it would have called.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::pickle::{Object, Stack};

/// Refuses a file whose pickle names anything but what saved tensors are built of.
pub fn refuse_calls(path: &Path) -> Result<()> {
    let place = || format!("{} is not a complete PyTorch file of plain tensors", path.display());
    let mut archive =
        zip::ZipArchive::new(BufReader::new(File::open(path).with_context(place)?)).with_context(place)?;
    for i in 0..archive.len() {
        let entry = archive.by_index(i).with_context(place)?;
        if !entry.is_file() || !entry.name().with_context(place)?.ends_with("data.pkl") {
            continue;
        }
        let mut bytes = Vec::new();
        entry.take(MOST_BYTES + 1).read_to_end(&mut bytes).with_context(place)?;
        ensure!(bytes.len() as u64 <= MOST_BYTES, "{}: its pickle is larger than that of any model", path.display());
        let mut reader = &bytes[..];
        let mut stack = Stack::empty();
        let mut ended = false;
        while !ended {
            let operation = reader.first().copied();
            // candle makes room for as many bytes as a text says it has, before it looks whether they are there.
            if let [b'X', a, b, c, d, rest @ ..] = reader {
                let length = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
                ensure!(length <= rest.len(), "{}: a text in its pickle ends after the pickle does", path.display());
            }
            ended = stack.read(&mut reader).with_context(place)?;
            // A name is on top of the stack right after it was read, whatever becomes of it later.
            if let Some(Object::Class { module_name, class_name }) = stack.stack().last() {
                ensure!(
                    builds_tensors(module_name, class_name),
                    "{}: its pickle would call `{module_name}.{class_name}`, which is no part of a tensor. Nothing of it \
                     was executed; do not load this file with other programs",
                    path.display()
                );
            }
            // What is remembered or recalled is copied: a few hundred bytes could ask for more memory than there is.
            if operation.is_some_and(|o| REMEMBER_OR_RECALL.contains(&o)) {
                let parts = stack.stack().last().map_or(0, |top| parts(top, MOST_PARTS));
                ensure!(parts < MOST_PARTS, "{}: its pickle repeats itself beyond all measure", path.display());
            }
        }
    }
    Ok(())
}

/// A pickle says where tensors lie and has none of their numbers: large models' are below a megabyte.
const MOST_BYTES: u64 = 64 << 20;
/// BINPUT, LONG_BINPUT, MEMOIZE, BINGET and LONG_BINGET.
const REMEMBER_OR_RECALL: [u8; 5] = [b'q', b'r', 0x94, b'h', b'j'];
/// More than anything that a saved tensor repeats is made of.
const MOST_PARTS: usize = 4096;

/// Of how many objects one is made, counted up to `most`.
fn parts(object: &Object, most: usize) -> usize {
    let inside: &mut dyn Iterator<Item = &Object> = match object {
        Object::Tuple(items) | Object::List(items) => &mut items.iter(),
        Object::Dict(pairs) => &mut pairs.iter().flat_map(|(key, value)| [key, value]),
        Object::Reduce { callable, args } | Object::Build { callable, args } => &mut [&**callable, &**args].into_iter(),
        Object::PersistentLoad(id) => &mut [&**id].into_iter(),
        _ => return 1,
    };
    let mut count = 1;
    for object in inside {
        count += parts(object, most);
        if count >= most {
            break;
        }
    }
    count
}

fn builds_tensors(module: &str, name: &str) -> bool {
    match module {
        "torch._utils" => ["_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"].contains(&name),
        "torch" => name.ends_with("Storage") || name == "Size",
        "torch.storage" => ["TypedStorage", "UntypedStorage"].contains(&name),
        "collections" => name == "OrderedDict",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_tensors_are_built_of_may_be_named() {
        let fixtures = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/pickles"));
        refuse_calls(&fixtures.join("single/pytorch_model.bin")).unwrap();
        let error = refuse_calls(&fixtures.join("evil/pytorch_model.bin")).unwrap_err().to_string();
        assert!(error.contains("would call `posix.system`"), "{error}");
        assert!(!builds_tensors("torch", "load") && !builds_tensors("builtins", "eval"));
    }
}
