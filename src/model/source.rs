//! Where a model comes from: an asset, the hub, a directory, or a GGUF file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use selfrepair_core::config::ModelConfig;
use crate::hub::{HubRepo, Kind};
use crate::provision;

/// What to call a model in the tables.
#[derive(Debug, Clone)]
pub struct Origin {
    pub name: String,
    /// The `model.source` it was asked for by.
    pub source: String,
    pub revision: String,
}

/// The files of a model.
#[derive(Debug, Clone)]
pub enum ModelSource {
    Gguf { path: PathBuf, origin: Origin },
    Directory { path: PathBuf, origin: Origin },
}

impl ModelSource {
    /// Finds the model, fetching a `package:` or `hf:` one.
    pub fn resolve(config: &ModelConfig) -> Result<Self> {
        let source = config.source.as_str();
        if let Some(name) = source.strip_prefix("package:") {
            let asset = provision::model_asset(name)?;
            let path = asset.provide()?;
            let origin = Origin { name: name.into(), source: source.into(), revision: asset.version.clone() };
            return Ok(Self::Gguf { path, origin });
        }
        if let Some(name) = source.strip_prefix("hf:") {
            return Ok(Self::of_hub(name, source, fetch(name, &config.revision)?));
        }
        ensure!(config.revision.is_empty(), "model.revision is for hf: sources; \"{source}\" has no revisions");
        let path = PathBuf::from(source);
        let name = path.file_stem().map_or(source.to_string(), |n| n.to_string_lossy().into_owned());
        let origin = Origin { name, source: source.into(), revision: String::new() };
        if path.is_dir() {
            let config = path.join("config.json");
            ensure!(config.is_file(), "model.source: {} has no config.json", path.display());
            return Ok(Self::Directory { path, origin });
        }
        if path.is_file() {
            ensure!(
                path.extension().is_some_and(|e| e == "gguf"),
                "model.source: {} is a file but not a .gguf file; name a directory with config.json and weights",
                path.display()
            );
            return Ok(Self::Gguf { path, origin });
        }
        bail!(
            "model.source = \"{source}\": no such file or directory; use package:smollm2, hf:owner/name, a directory with \
             config.json and weights, or a .gguf file"
        )
    }

    /// As [`ModelSource::resolve`], but of an `hf:` model only the configuration is fetched.
    pub fn resolve_configuration(config: &ModelConfig) -> Result<Self> {
        let Some(name) = config.source.strip_prefix("hf:") else { return Self::resolve(config) };
        let path = HubRepo::new(Kind::Model, name, &config.revision)?.get("config.json")?;
        let folder = path.parent().context("a file in the cache has a folder")?.to_path_buf();
        Ok(Self::of_hub(name, &config.source, folder))
    }

    /// A snapshot in the hub's cache. Its folder is named by the commit, which says more than a branch.
    fn of_hub(name: &str, source: &str, path: PathBuf) -> Self {
        let revision = path.file_name().map_or(String::new(), |n| n.to_string_lossy().into_owned());
        let origin = Origin { name: name.rsplit('/').next().unwrap_or(name).into(), source: source.into(), revision };
        Self::Directory { path, origin }
    }

    pub fn path(&self) -> &Path {
        match self {
            Self::Gguf { path, .. } | Self::Directory { path, .. } => path,
        }
    }

    pub fn origin(&self) -> &Origin {
        match self {
            Self::Gguf { origin, .. } | Self::Directory { origin, .. } => origin,
        }
    }

    /// The files whose bytes define the model, for its fingerprint.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        match self {
            Self::Gguf { path, .. } => Ok(vec![path.clone()]),
            Self::Directory { path, .. } => {
                let mut files = vec![path.join("config.json")];
                files.extend(weight_files(path)?);
                files.extend(TOKENIZER.iter().map(|name| path.join(name)).filter(|f| f.is_file()));
                Ok(files)
            }
        }
    }
}

/// What a tokenizer may be made of.
const TOKENIZER: [&str; 4] = ["tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json"];

/// Fetches a model of the hub: its configuration, its tokenizer, and the weights in the best format it has.
fn fetch(name: &str, revision: &str) -> Result<PathBuf> {
    let repo = HubRepo::new(Kind::Model, name, revision)?;
    let files = repo.files()?;
    let has = |file: &str| files.iter().any(|f| f == file);
    ensure!(has("config.json"), "hf:{name} has no config.json; it is no model that transformers could load");
    let config = repo.get("config.json")?;
    for file in TOKENIZER.iter().filter(|f| has(f)) {
        repo.get(file)?;
    }
    for (single, index) in
        [("model.safetensors", "model.safetensors.index.json"), ("pytorch_model.bin", "pytorch_model.bin.index.json")]
    {
        if has(single) {
            repo.get(single)?;
        } else if has(index) {
            for shard in shard_names(&repo.get(index)?)? {
                repo.get(&shard)?;
            }
        } else {
            continue;
        }
        return Ok(config.parent().context("a file in the cache has a folder")?.to_path_buf());
    }
    bail!("hf:{name} has neither model.safetensors nor pytorch_model.bin (or an index of shards of either)")
}

/// The weight files of a directory: one file, or the shards that an index names, which must be plain file names.
/// safetensors are preferred to PyTorch's `.bin`.
pub fn weight_files(directory: &Path) -> Result<Vec<PathBuf>> {
    for (single, index) in
        [("model.safetensors", "model.safetensors.index.json"), ("pytorch_model.bin", "pytorch_model.bin.index.json")]
    {
        if directory.join(single).is_file() {
            return Ok(vec![directory.join(single)]);
        }
        if directory.join(index).is_file() {
            return shards(directory, &directory.join(index));
        }
    }
    bail!(
        "{}: found no weights; expected model.safetensors, pytorch_model.bin or an index of shards of either",
        directory.display()
    )
}

fn shards(directory: &Path, index: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for name in shard_names(index)? {
        let path = directory.join(name);
        ensure!(path.is_file(), "{}: the shard {} is missing", index.display(), path.display());
        files.push(path);
    }
    Ok(files)
}

/// The files an index names, checked to be plain names.
fn shard_names(index: &Path) -> Result<BTreeSet<String>> {
    let json = read_json(index)?;
    let map = json["weight_map"].as_object().with_context(|| format!("{}: no `weight_map` object", index.display()))?;
    let names: BTreeSet<String> = map.values().filter_map(Value::as_str).map(str::to_string).collect();
    for name in &names {
        ensure!(
            Path::new(name).file_name().is_some_and(|f| f == name.as_str()),
            "{}: the shard `{name}` is not a plain file name; shards must lie beside the index",
            index.display()
        );
    }
    ensure!(!names.is_empty(), "{}: names no shards", index.display());
    Ok(names)
}

pub fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not valid JSON", path.display()))
}
