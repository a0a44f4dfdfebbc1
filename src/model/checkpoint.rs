//! Named tensors as float32, with every shape and value checked, from a GGUF file, safetensors or PyTorch `.bin` files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result, bail, ensure};
use candle_core::pickle::PthTensors;
use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};
use ndarray::{Array1, Array2};
use serde_json::Value;

use super::gguf::GgufFile;
use super::pickle::refuse_calls;
use super::source::{ModelSource, read_json, weight_files};
use selfrepair_core::outside::without_panic;

/// An open checkpoint. Tensor names are Hugging Face's, also for a GGUF file.
pub struct Checkpoint {
    path: PathBuf,
    config: Value,
    tensors: Tensors,
    /// Names asked for so far.
    read: Mutex<BTreeSet<String>>,
}

enum Tensors {
    /// Which file has which tensor. A file is mapped only while one tensor is copied out of it: pages of a mapping that
    /// stays would count as memory of this process, until it were as large as the checkpoint.
    Safetensors(BTreeMap<String, PathBuf>),
    /// PyTorch's own format, which is a pickle. candle reads the pickle's data and never runs what it calls.
    Pickle(Vec<PthTensors>),
    Gguf(GgufFile),
    /// A configuration without its weights, to be described and not run.
    Absent,
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
                (config, open_directory(path)?)
            }
        };
        Ok(Self { path, config, tensors, read: Mutex::default() })
    }

    /// The configuration of a directory whose weights may not be there.
    pub fn open_configuration(directory: &Path) -> Result<Self> {
        let config = read_json(&directory.join("config.json"))?;
        Ok(Self { path: directory.to_path_buf(), config, tensors: Tensors::Absent, read: Mutex::default() })
    }

    pub fn config(&self) -> &Value {
        &self.config
    }

    pub fn gguf(&self) -> Option<&GgufFile> {
        match &self.tensors {
            Tensors::Gguf(file) => Some(file),
            _ => None,
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
            Tensors::Safetensors(files) => files.contains_key(name),
            Tensors::Pickle(files) => files.iter().any(|f| f.tensor_infos().contains_key(name)),
            Tensors::Gguf(file) => file.has(name),
            Tensors::Absent => false,
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
                let file = map(files.get(name).with_context(|| self.missing(name))?)?;
                Ok(file.get(name)?.dtype().to_string())
            }
            Tensors::Pickle(files) => {
                let info = files.iter().find_map(|f| f.tensor_infos().get(name));
                Ok(info.with_context(|| self.missing(name))?.dtype.as_str().to_uppercase())
            }
            Tensors::Gguf(file) => file.dtype(name).with_context(|| self.missing(name)),
            Tensors::Absent => {
                let named = self.config["dtype"].as_str().or(self.config["torch_dtype"].as_str());
                Ok(named.unwrap_or("unknown").to_string())
            }
        }
    }

    /// Whether every tensor of the checkpoint was asked for, but for those that are computed and not learned, and an
    /// unembedding that repeats the embedding.
    pub fn check_nothing_was_left_out(&self) -> Result<()> {
        let all: Vec<String> = match &self.tensors {
            Tensors::Safetensors(files) => files.keys().cloned().collect(),
            Tensors::Pickle(files) => files.iter().flat_map(|f| f.tensor_infos().keys().cloned()).collect(),
            Tensors::Absent => return Ok(()),
            Tensors::Gguf(file) => {
                return file.check_nothing_was_left_out(&self.read.lock().unwrap_or_else(|e| e.into_inner()));
            }
        };
        let computed =
            ["attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias", "rotary_emb.inv_freq"];
        let read = self.read.lock().unwrap_or_else(|e| e.into_inner());
        let left: Vec<&String> =
            all.iter().filter(|n| !read.contains(*n) && !computed.iter().any(|c| n.ends_with(c))).collect();
        ensure!(
            left.is_empty(),
            "{}: the checkpoint has tensors that its configuration does not speak of ({}{}); it is a variation that is \
             not supported yet",
            self.path.display(),
            left.iter().take(3).map(|n| n.as_str()).collect::<Vec<_>>().join(", "),
            if left.len() > 3 { ", …" } else { "" }
        );
        Ok(())
    }

    fn missing(&self, name: &str) -> String {
        format!("{}: the tensor `{name}` is missing; is the checkpoint complete?", self.path.display())
    }

    /// The only place where weights come in: shape and finiteness are checked here.
    fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.read.lock().unwrap_or_else(|e| e.into_inner()).insert(name.to_string());
        let tensor = match &self.tensors {
            Tensors::Pickle(files) => {
                let file = files.iter().find(|f| f.tensor_infos().contains_key(name));
                let file = file.with_context(|| self.missing(name))?;
                // Before memory is taken for it: the sizes are what the file says.
                let found = file.tensor_infos()[name].layout.dims();
                ensure!(
                    found == shape,
                    "{}: the tensor `{name}` has the shape {found:?}; the configuration asks for {shape:?}",
                    self.path.display()
                );
                file.get(name).and_then(|t| t.ok_or_else(|| candle_core::Error::Msg("it vanished".into())))
            }
            Tensors::Safetensors(files) => {
                let file = files.get(name).with_context(|| self.missing(name))?;
                map(file)?.load(name, &Device::Cpu)
            }
            Tensors::Absent => bail!(self.missing(name)),
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

fn open_directory(directory: &Path) -> Result<Tensors> {
    let files = weight_files(directory)?;
    if files[0].extension().is_some_and(|e| e == "bin") {
        let open = |path: &PathBuf| -> Result<PthTensors> {
            without_panic(|| refuse_calls(path)).with_context(|| format!("reading {}", path.display()))?;
            without_panic(|| Ok(PthTensors::new(path, None)?))
                .with_context(|| format!("{} is not a complete PyTorch file of plain tensors", path.display()))
        };
        return Ok(Tensors::Pickle(files.iter().map(open).collect::<Result<_>>()?));
    }
    let mut out = BTreeMap::new();
    for path in files {
        for (name, _) in map(&path)?.tensors() {
            out.entry(name).or_insert_with(|| path.clone());
        }
    }
    Ok(Tensors::Safetensors(out))
}

fn map(path: &Path) -> Result<MmapedSafetensors> {
    #[allow(unsafe_code)]
    // SAFETY: the file is mapped read-only; changing it while a run reads it is outside what we guard against.
    let file = unsafe { MmapedSafetensors::new(path) };
    file.with_context(|| format!("{} is not a complete safetensors file", path.display()))
}
