//! Named tensors as float32, with every shape and value checked, from a GGUF file or a safetensors directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};
use ndarray::{Array1, Array2};
use serde_json::Value;

use super::gguf::GgufFile;
use super::source::ModelSource;

/// An open checkpoint. Tensor names are Hugging Face's, also for a GGUF file.
pub struct Checkpoint {
    path: PathBuf,
    config: Value,
    tensors: Tensors,
}

enum Tensors {
    Safetensors(BTreeMap<PathBuf, MmapedSafetensors>),
    Gguf(GgufFile),
}

impl Checkpoint {
    pub fn open(source: &ModelSource) -> Result<Self> {
        let path = source.path().to_path_buf();
        let (config, tensors) = match source {
            ModelSource::Gguf { path, .. } => {
                let file = GgufFile::open(path)?;
                (file.config()?, Tensors::Gguf(file))
            }
            ModelSource::Directory { path, .. } => {
                let config = read_json(&path.join("config.json"))?;
                (config, Tensors::Safetensors(open_safetensors(path)?))
            }
        };
        Ok(Self { path, config, tensors })
    }

    pub fn config(&self) -> &Value {
        &self.config
    }

    pub fn gguf(&self) -> Option<&GgufFile> {
        match &self.tensors {
            Tensors::Gguf(file) => Some(file),
            Tensors::Safetensors(_) => None,
        }
    }

    pub fn model_type(&self) -> Result<&str> {
        self.config["model_type"]
            .as_str()
            .with_context(|| format!("{}: the configuration has no `model_type`", self.path.display()))
    }

    /// A whole number of the configuration.
    pub fn size(&self, key: &str) -> Result<usize> {
        self.optional_size(key)?.with_context(|| {
            format!("{}: the configuration has no `{key}`; expected a positive whole number", self.path.display())
        })
    }

    /// A whole number of the configuration that may be missing.
    pub fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        match &self.config[key] {
            Value::Null => Ok(None),
            value => match value.as_u64() {
                Some(n) if n > 0 && n < u32::MAX as u64 => Ok(Some(n as usize)),
                _ => bail!("{}: `{key}` is {value}; expected a positive whole number", self.path.display()),
            },
        }
    }

    /// A number of the configuration, or its default.
    pub fn number(&self, key: &str, default: f64) -> Result<f64> {
        match &self.config[key] {
            Value::Null => Ok(default),
            value => value
                .as_f64()
                .with_context(|| format!("{}: `{key}` is {value}; expected a number", self.path.display())),
        }
    }

    pub fn has(&self, name: &str) -> bool {
        match &self.tensors {
            Tensors::Safetensors(files) => files.values().any(|f| f.get(name).is_ok()),
            Tensors::Gguf(file) => file.has(name),
        }
    }

    /// A vector of `len` elements.
    pub fn vector(&self, name: &str, len: usize) -> Result<Array1<f32>> {
        Ok(Array1::from_vec(self.read(name, &[len])?))
    }

    /// A matrix as stored, [rows, columns].
    pub fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<Array2<f32>> {
        Ok(Array2::from_shape_vec((rows, columns), self.read(name, &[rows, columns])?)?)
    }

    /// A linear layer's weight, stored [out, in] as PyTorch does, as a matrix that acts on rows: [in, out].
    pub fn linear(&self, name: &str, inputs: usize, outputs: usize) -> Result<Array2<f32>> {
        Ok(self.matrix(name, outputs, inputs)?.t().as_standard_layout().into_owned())
    }

    /// The element type of a tensor, for the `model` table.
    pub fn dtype(&self, name: &str) -> Result<String> {
        match &self.tensors {
            Tensors::Safetensors(files) => {
                let view = files.values().find_map(|f| f.get(name).ok());
                Ok(view.with_context(|| self.missing(name))?.dtype().to_string())
            }
            Tensors::Gguf(file) => file.dtype(name).with_context(|| self.missing(name)),
        }
    }

    fn missing(&self, name: &str) -> String {
        format!("{}: the tensor `{name}` is missing; is the checkpoint complete?", self.path.display())
    }

    /// The only place where weights come in: shape and finiteness are checked here.
    fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = match &self.tensors {
            Tensors::Safetensors(files) => {
                let file = files.values().find(|f| f.get(name).is_ok()).with_context(|| self.missing(name))?;
                file.load(name, &Device::Cpu)
            }
            Tensors::Gguf(file) => {
                ensure!(file.has(name), self.missing(name));
                file.tensor(name)
            }
        };
        let values = tensor
            .and_then(|t| expect_shape(t, shape))
            .and_then(|t| t.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>())
            .with_context(|| format!("{}: the tensor `{name}` cannot be read", self.path.display()))?;
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            bail!(
                "{}: the tensor `{name}` has {} at element {i}; weights must be finite",
                self.path.display(),
                values[i]
            );
        }
        Ok(values)
    }
}

fn expect_shape(tensor: Tensor, shape: &[usize]) -> candle_core::Result<Tensor> {
    if tensor.dims() != shape {
        candle_core::bail!("its shape is {:?}; the configuration asks for {shape:?}", tensor.dims());
    }
    Ok(tensor)
}

fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not valid JSON", path.display()))
}

/// `model.safetensors`, or the shards that `model.safetensors.index.json` names, which must be plain file names.
pub fn safetensors_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let single = directory.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index = directory.join("model.safetensors.index.json");
    ensure!(
        index.is_file(),
        "{}: found neither model.safetensors nor model.safetensors.index.json",
        directory.display()
    );
    let json = read_json(&index)?;
    let map = json["weight_map"].as_object().with_context(|| format!("{}: no `weight_map` object", index.display()))?;
    let mut names: Vec<&str> = map.values().filter_map(Value::as_str).collect();
    names.sort_unstable();
    names.dedup();
    let mut files = Vec::new();
    for name in names {
        ensure!(
            Path::new(name).file_name().is_some_and(|f| f == name),
            "{}: the shard `{name}` is not a plain file name; shards must lie beside the index",
            index.display()
        );
        let path = directory.join(name);
        ensure!(path.is_file(), "{}: the shard {} is missing", index.display(), path.display());
        files.push(path);
    }
    ensure!(!files.is_empty(), "{}: names no shards", index.display());
    Ok(files)
}

fn open_safetensors(directory: &Path) -> Result<BTreeMap<PathBuf, MmapedSafetensors>> {
    let mut out = BTreeMap::new();
    for path in safetensors_files(directory)? {
        // SAFETY: the file is mapped read-only; changing it while a run reads it is outside what we guard against.
        let file = unsafe { MmapedSafetensors::new(&path) }
            .with_context(|| format!("{} is not a complete safetensors file", path.display()))?;
        out.insert(path, file);
    }
    Ok(out)
}
