//! GGUF files, presented as a Hugging Face checkpoint: tensors under its names and in its layout, and metadata as a
//! configuration. The changes of llama.cpp's converter are reverted here, so family files need not know the format.

mod config;
mod header;
mod layout;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, Seek};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result, bail, ensure};
use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};

use selfrepair_core::untrusted::{open_file, without_panic};

pub use candle_core::quantized::gguf_file::Value;
pub use config::ARCHITECTURES;

pub struct GgufFile {
    path: PathBuf,
    content: Content,
    reader: Mutex<BufReader<File>>,
}

impl GgufFile {
    pub fn open(path: &Path) -> Result<Self> {
        let mut reader = BufReader::new(open_file(path)?);
        let place = || format!("{} is not a complete GGUF file", path.display());
        if let Some(unsupported) = header::check(&mut reader).with_context(place)? {
            bail!("{}: {unsupported}", path.display());
        }
        let content = without_panic(|| {
            reader.rewind()?;
            Ok(Content::read(&mut reader)?)
        });
        let content = content.with_context(place)?;
        Ok(Self { path: path.to_path_buf(), content, reader: Mutex::new(reader) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn metadata(&self, key: &str) -> Result<&Value> {
        let value = self.content.metadata.get(key);
        value.with_context(|| format!("{}: the GGUF metadata has no `{key}`", self.path.display()))
    }

    pub fn optional(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(key)
    }

    /// `llama`, `gpt2`, `phi2`, … as llama.cpp calls it.
    pub fn architecture(&self) -> Result<&str> {
        let place = || format!("{}: `general.architecture`", self.path.display());
        Ok(self.metadata("general.architecture")?.to_string().with_context(place)?.as_str())
    }

    fn stores(&self, gguf_name: &str) -> bool {
        self.content.tensor_infos.contains_key(gguf_name)
    }

    /// A whole number of the metadata from 0 on, `None` if it is missing.
    fn integer(&self, key: &str) -> Result<Option<u64>> {
        let number = match self.optional(key) {
            None => return Ok(None),
            Some(Value::U8(n)) => Some(u64::from(*n)),
            Some(Value::U16(n)) => Some(u64::from(*n)),
            Some(Value::U32(n)) => Some(u64::from(*n)),
            Some(Value::U64(n)) => Some(*n),
            Some(Value::I8(n)) => u64::try_from(*n).ok(),
            Some(Value::I16(n)) => u64::try_from(*n).ok(),
            Some(Value::I32(n)) => u64::try_from(*n).ok(),
            Some(Value::I64(n)) => u64::try_from(*n).ok(),
            Some(_) => None,
        };
        let number = number.filter(|&n| n < u64::from(u32::MAX));
        number.map(Some).with_context(|| self.wrong(key, "a whole number that fits into 32 bits"))
    }

    /// A finite number of the metadata, `None` if it is missing.
    fn float(&self, key: &str) -> Result<Option<f64>> {
        let number = match self.optional(key) {
            None => return Ok(None),
            Some(Value::F32(x)) => Some(f64::from(*x)),
            Some(Value::F64(x)) => Some(*x),
            Some(_) => None,
        };
        number.filter(|x| x.is_finite()).map(Some).with_context(|| self.wrong(key, "a finite number"))
    }

    /// A flag of the metadata, or its default.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.optional(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => bail!(self.wrong(key, "true or false")),
        }
    }

    fn wrong(&self, key: &str, expected: &str) -> String {
        let value = match self.optional(key) {
            Some(Value::Array(list)) => format!("a list of {}", list.len()),
            Some(Value::String(text)) => format!("the text {:?}", text.chars().take(40).collect::<String>()),
            Some(value) => format!("{value:?}"),
            None => "missing".into(),
        };
        format!("{}: `{key}` is {value}; expected {expected}", self.path.display())
    }

    pub fn has(&self, name: &str) -> bool {
        layout::stored_name(self, name).is_some_and(|n| self.stores(&n))
    }

    pub fn dtype(&self, name: &str) -> Option<String> {
        let info = self.content.tensor_infos.get(&layout::stored_name(self, name)?)?;
        Some(format!("{:?}", info.ggml_dtype))
    }

    /// A tensor by its Hugging Face name and in its layout, dequantised to float32.
    pub fn tensor(&self, name: &str) -> candle_core::Result<Tensor> {
        let stored = layout::stored_name(self, name)
            .ok_or_else(|| candle_core::Error::Msg(format!("no GGUF name for `{name}`")))?;
        layout::restore(self, name, self.stored(&stored)?)
    }

    /// A tensor as the file has it, [out, in].
    fn stored(&self, gguf_name: &str) -> candle_core::Result<Tensor> {
        let mut reader = self.reader.lock().unwrap_or_else(|e| e.into_inner());
        let dequantized = without_panic(|| {
            Ok(self.content.tensor(&mut *reader, gguf_name, &Device::Cpu)?.dequantize(&Device::Cpu)?)
        });
        dequantized.map_err(|e| candle_core::Error::Msg(format!("{e:#}")))
    }

    /// See [`super::Checkpoint::check_nothing_was_left_out`].
    pub fn check_nothing_was_left_out(&self, read: &BTreeSet<String>) -> Result<()> {
        let mut read: BTreeSet<String> = read.iter().filter_map(|name| layout::stored_name(self, name)).collect();
        // Read with the configuration.
        read.insert(config::ROPE_FACTORS.into());
        if self.architecture()? == "phi3" {
            read.extend(config::LONG_ROPE_FACTORS.map(String::from));
        }
        let left: Vec<&String> = self.content.tensor_infos.keys().filter(|n| !read.contains(*n)).collect();
        ensure!(
            left.is_empty(),
            "{}: the file has tensors that its architecture does not explain ({}); this variant is not supported yet",
            self.path.display(),
            left.iter().take(3).map(|n| n.as_str()).collect::<Vec<_>>().join(", ")
        );
        Ok(())
    }
}
