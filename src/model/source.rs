//! Where a model comes from: an asset, a directory, or a GGUF file.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};

use super::checkpoint::safetensors_files;
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
    /// Finds the model, provisioning a `package:` one.
    pub fn resolve(source: &str) -> Result<Self> {
        if let Some(name) = source.strip_prefix("package:") {
            let asset = provision::model_asset(name)?;
            let path = asset.provide()?;
            let origin = Origin { name: name.into(), source: source.into(), revision: asset.version.clone() };
            return Ok(Self::Gguf { path, origin });
        }
        ensure!(
            !source.starts_with("hf:"),
            "model.source = \"{source}\": hub sources are not supported yet; download the repository and name its folder"
        );
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
                "model.source: {} is a file but not a .gguf file; name a directory with config.json and safetensors",
                path.display()
            );
            return Ok(Self::Gguf { path, origin });
        }
        bail!(
            "model.source = \"{source}\": no such file or directory; use package:smollm2, a directory with config.json \
             and safetensors, or a .gguf file"
        )
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
                files.extend(safetensors_files(path)?);
                for name in ["tokenizer.json", "generation_config.json"] {
                    files.push(path.join(name));
                }
                files.retain(|f| f.is_file());
                Ok(files)
            }
        }
    }
}
