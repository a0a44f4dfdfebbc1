//! Where a model comes from: an asset, the hub, a directory, or a GGUF file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::non_finite::{self, MARKED};
use super::unique::Unique;
use crate::hub::{HubRepo, Kind};
use crate::provision;
use selfrepair_core::config::ModelConfig;
use selfrepair_core::untrusted::{open_file, read_bytes};

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
        let name = name_of(&path, source);
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
        if path.exists() {
            open_file(&path).with_context(|| format!("model.source = \"{source}\""))?;
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
                files.extend(weights(path)?.files);
                files.extend(TOKENIZER.iter().map(|name| path.join(name)).filter(|f| f.is_file()));
                Ok(files)
            }
        }
    }
}

/// A folder's whole name (`Qwen2.5-0.5B`); a file's name without its ending.
fn name_of(path: &Path, source: &str) -> String {
    let name = match path.is_dir() {
        // `.` and `..` have no name of their own.
        true if path.file_name().is_none() => path.canonicalize().ok().and_then(|p| Some(p.file_name()?.to_owned())),
        true => path.file_name().map(|name| name.to_owned()),
        false => path.file_stem().map(|name| name.to_owned()),
    };
    name.map_or(source.to_string(), |name| name.to_string_lossy().into_owned())
}

/// What a tokenizer may be made of.
const TOKENIZER: [&str; 4] = ["tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json"];

/// Fetches a model of the hub: its configuration, its tokenizer, and the weights in the best format it has.
fn fetch(name: &str, revision: &str) -> Result<PathBuf> {
    let repo = HubRepo::new(Kind::Model, name, revision)?;
    let files = repo.files()?;
    let has = |file: &str| files.iter().any(|f| f == file);
    ensure!(has("config.json"), "hf:{name} has no config.json; transformers could not load it either");
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
            let names: BTreeSet<String> = read_index(&repo.get(index)?)?.into_values().collect();
            for shard in names {
                repo.get(&shard)?;
            }
        } else {
            continue;
        }
        return Ok(config.parent().context("a file in the cache has a folder")?.to_path_buf());
    }
    // TransformerLens's own.
    let finals: Vec<&String> = files.iter().filter(|file| is_final(file)).collect();
    if let [file] = finals[..] {
        repo.get(file)?;
        return Ok(config.parent().context("a file in the cache has a folder")?.to_path_buf());
    }
    bail!("hf:{name} has neither model.safetensors nor pytorch_model.bin (or an index of shards of either)")
}

/// The weight files of a directory, and which tensor is in which of them, if an index says so.
pub struct Weights {
    pub files: Vec<PathBuf>,
    /// File names by tensor; empty without an index.
    pub index: BTreeMap<String, String>,
}

impl Weights {
    pub fn are_pickles(&self) -> bool {
        self.files.iter().any(|f| f.extension().is_some_and(|e| e == "bin" || e == "pth"))
    }
}

/// Whether a file has the weights at the end of the training, as TransformerLens's own format calls them
/// (`model_final.pth`, `SoLU_1L_final.pth`). Folders of other files are not looked into.
fn is_final(name: &str) -> bool {
    name.ends_with("final.pth") && !name.contains('/')
}

/// One file, or the shards that an index names. safetensors are preferred to PyTorch's `.bin`.
pub fn weights(directory: &Path) -> Result<Weights> {
    for (single, index) in
        [("model.safetensors", "model.safetensors.index.json"), ("pytorch_model.bin", "pytorch_model.bin.index.json")]
    {
        if directory.join(single).is_file() {
            return Ok(Weights { files: vec![directory.join(single)], index: BTreeMap::new() });
        }
        if directory.join(index).is_file() {
            return shards(directory, &directory.join(index));
        }
    }
    let mut finals = Vec::new();
    for entry in directory.read_dir().with_context(|| directory.display().to_string())? {
        finals.extend(entry?.file_name().into_string().ok().filter(|name| is_final(name)));
    }
    if let [file] = &finals[..] {
        return Ok(Weights { files: vec![directory.join(file)], index: BTreeMap::new() });
    }
    bail!(
        "{}: found no weights; expected model.safetensors, pytorch_model.bin or an index of shards of either",
        directory.display()
    )
}

fn shards(directory: &Path, path: &Path) -> Result<Weights> {
    let index = read_index(path)?;
    let names: BTreeSet<&String> = index.values().collect();
    let files: Vec<PathBuf> = names.into_iter().map(|name| directory.join(name)).collect();
    for file in &files {
        ensure!(file.is_file(), "{}: the shard {} is missing", path.display(), file.display());
    }
    Ok(Weights { files, index })
}

/// The most bytes that a JSON file of a checkpoint may have: an index of a million tensors has less.
const MOST_JSON: u64 = 256 << 20;

/// File names by tensor. The files must be plain names of files of the index's format, which lie beside the index.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: Unique<String>,
    }
    let Index { weight_map: Unique(map) } = serde_json::from_slice(&read_bytes(path, MOST_JSON)?)
        .with_context(|| format!("{}: expected an object `weight_map` of file names by tensor", path.display()))?;
    let format = if path.to_string_lossy().contains(".safetensors") { "safetensors" } else { "bin" };
    for name in map.values() {
        ensure!(
            Path::new(name).file_name().is_some_and(|f| f == name.as_str()),
            "{}: the shard {name:?} is not a plain file name; shards must lie beside the index",
            path.display()
        );
        ensure!(
            Path::new(name).extension().is_some_and(|e| e == format),
            "{}: the shard {name:?} is not a .{format} file",
            path.display()
        );
    }
    ensure!(!map.is_empty(), "{}: names no shards", path.display());
    Ok(map)
}

/// A JSON object, none of whose keys is there twice.
pub fn read_json(path: &Path) -> Result<Value> {
    let bytes = read_bytes(path, MOST_JSON)?;
    let object: Result<Unique<Value>, _> = serde_json::from_slice(&bytes).or_else(|e| {
        // Python reads and writes NaN; it matters only under a key that is read.
        let marked = str::from_utf8(&bytes).ok().and_then(|text| non_finite::replaced(text, MARKED));
        marked.map_or(Err(e), |text| serde_json::from_str(&text))
    });
    let object = object.with_context(|| format!("{} is not valid JSON", path.display()))?;
    Ok(object.0.into_iter().collect())
}
