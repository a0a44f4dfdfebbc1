//! Finds ONNX Runtime's shared library.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::{assets, python};

/// The oldest release with every operator this program writes (`ort`'s `api-31`).
const OLDEST: (u32, u32) = (1, 31);

/// A library file and how it was found.
pub struct Library {
    pub path: PathBuf,
    pub origin: String,
}

/// `ORT_DYLIB_PATH`, an installed `onnxruntime` package of at least 1.31, the cache, or a download.
pub fn locate_library() -> Result<Library> {
    match find_library()? {
        Some(library) => Ok(library),
        None => {
            let asset = assets::library_asset("onnxruntime")?;
            let origin = format!("downloaded, {} {}", asset.package, asset.version);
            Ok(Library { path: asset.provide()?, origin })
        }
    }
}

/// The library if it is on this machine already.
pub fn find_library() -> Result<Option<Library>> {
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH").filter(|p| !p.is_empty()) {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "ORT_DYLIB_PATH = {}: no such file", path.display());
        return Ok(Some(Library { path, origin: "ORT_DYLIB_PATH".into() }));
    }
    for dir in python::search_paths() {
        if let Some(path) = newest_in(&dir.join("onnxruntime").join("capi")) {
            return Ok(Some(Library { path, origin: "installed in Python".into() }));
        }
    }
    let asset = assets::library_asset("onnxruntime")?;
    let origin = format!("cached, {} {}", asset.package, asset.version);
    Ok(asset.find()?.map(|path| Library { path, origin }))
}

/// The newest library of at least [`OLDEST`] in a folder.
fn newest_in(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    let versions = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        Some((version_of(path.file_name()?.to_str()?)?, path))
    });
    versions.filter(|(v, _)| *v >= OLDEST).max().map(|(_, path)| path)
}

/// `libonnxruntime.so.1.31.1` and `libonnxruntime.1.31.1.dylib` → (1, 31).
fn version_of(file: &str) -> Option<(u32, u32)> {
    let rest = file.strip_prefix("libonnxruntime.")?;
    let rest = rest.strip_prefix("so.").or_else(|| rest.strip_suffix(".dylib"))?;
    let mut numbers = rest.split('.').map(|n| n.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_library_that_is_new_enough_is_chosen() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["libonnxruntime.so.1.30.0", "libonnxruntime_providers_shared.so", "notes.txt"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(newest_in(dir.path()), None);
        for name in ["libonnxruntime.so.1.31.1", "libonnxruntime.so.1.32.0"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(newest_in(dir.path()), Some(dir.path().join("libonnxruntime.so.1.32.0")));
        assert_eq!(version_of("libonnxruntime.1.31.1.dylib"), Some((1, 31)));
    }
}
