//! safetensors files: the header is read once, a tensor's bytes when they are needed.
//!
//! Files are read, not mapped. If a mapped file is truncated (a download that restarts, `rsync --inplace`), the process
//! ends with SIGBUS; a read that ends early is an error.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use super::unique::Unique;
use selfrepair_core::untrusted::{open_file, without_panic};

/// As the format itself has it.
const MOST_HEADER: u64 = 100_000_000;

/// Bytes that are converted at a time, a multiple of every element's size.
const CHUNK: usize = 1 << 20;

pub struct SafetensorsFile {
    path: PathBuf,
    file: Mutex<File>,
    /// Where the first tensor's bytes are.
    data: u64,
    tensors: BTreeMap<String, Info>,
}

#[derive(Debug, Clone, Deserialize)]
struct Info {
    dtype: String,
    shape: Vec<usize>,
    /// First byte and the byte after the last, counted from where the data begin.
    data_offsets: (u64, u64),
}

/// A value of the header: a tensor, or the texts of `__metadata__`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Entry {
    Tensor(Info),
    Metadata {},
}

impl SafetensorsFile {
    pub fn open(path: &Path) -> Result<Self> {
        let read = || Self::read_header(path);
        without_panic(read).with_context(|| format!("{} is not a complete safetensors file", path.display()))
    }

    fn read_header(path: &Path) -> Result<Self> {
        let mut file = open_file(path)?;
        let size = file.metadata()?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length)?;
        let length = u64::from_le_bytes(length);
        ensure!(
            length <= MOST_HEADER && length <= size - 8,
            "its header declares {length} bytes, but the file has {size}"
        );
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header)?;
        let entries: Unique<Entry> = serde_json::from_slice(&header).context("its header")?;
        let mut tensors = BTreeMap::new();
        for (name, entry) in entries.0 {
            match entry {
                Entry::Metadata {} if name == "__metadata__" => {}
                Entry::Tensor(info) if name != "__metadata__" => {
                    tensors.insert(name, info);
                }
                _ => bail!("its header: `{name}` is neither a tensor nor the metadata"),
            }
        }
        let end = check_layout(&tensors)?;
        ensure!(
            8 + length + end == size,
            "its tensors end at byte {}, and the file has {size}",
            (8 + length).saturating_add(end)
        );
        Ok(Self { path: path.to_path_buf(), file: Mutex::new(file), data: 8 + length, tensors })
    }

    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.tensors.keys()
    }

    /// The element type as the format calls it: `F32`, `BF16`, …
    pub fn dtype(&self, name: &str) -> Option<&str> {
        self.tensors.get(name).map(|info| info.dtype.as_str())
    }

    /// A tensor's values, if it has that shape.
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let info = self.tensors.get(name).context("it is not in the file")?;
        ensure!(info.shape == shape, "its shape is {:?}; the configuration asks for {shape:?}", info.shape);
        let (dtype, _) = element(&info.dtype).with_context(|| format!("the type {} is not supported", info.dtype))?;
        let mut file = self.file.lock().unwrap_or_else(|e| e.into_inner());
        let place = || format!("reading {}", self.path.display());
        file.seek(SeekFrom::Start(self.data + info.data_offsets.0)).with_context(place)?;
        let mut left = (info.data_offsets.1 - info.data_offsets.0) as usize;
        let mut values = Vec::new();
        values.try_reserve_exact(left / dtype.size_in_bytes()).context("out of memory for its values")?;
        let mut bytes = vec![0; CHUNK.min(left)];
        while left > 0 {
            bytes.truncate(left);
            file.read_exact(&mut bytes).with_context(place)?;
            let count = bytes.len() / dtype.size_in_bytes();
            let tensor = Tensor::from_raw_buffer(&bytes, dtype, &[count], &Device::Cpu)?;
            values.extend(tensor.to_dtype(DType::F32)?.to_vec1::<f32>()?);
            left -= bytes.len();
        }
        Ok(values)
    }
}

/// Bytes that the tensors take. As the format asks, they lie one after the other, each as large as its shape says.
fn check_layout(tensors: &BTreeMap<String, Info>) -> Result<u64> {
    let mut in_order: Vec<(&String, &Info)> = tensors.iter().collect();
    in_order.sort_by_key(|(_, info)| info.data_offsets);
    let mut start = 0;
    for (name, info) in in_order {
        let count = info.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64));
        // Of a type that is not known, the size is taken as it is said.
        let size = match element(&info.dtype) {
            Some((_, bytes)) => count.and_then(|n| n.checked_mul(bytes)),
            None => info.data_offsets.1.checked_sub(info.data_offsets.0),
        };
        let end = size.and_then(|size| size.checked_add(start));
        ensure!(
            end.is_some_and(|end| info.data_offsets == (start, end)),
            "the tensor `{name}` of {:?} {} is said to be the bytes {:?}, after {start} bytes of other tensors",
            info.shape,
            info.dtype,
            info.data_offsets
        );
        start = info.data_offsets.1;
    }
    Ok(start)
}

/// An element type and its bytes.
fn element(name: &str) -> Option<(DType, u64)> {
    let dtype = match name {
        "F32" => DType::F32,
        "F16" => DType::F16,
        "BF16" => DType::BF16,
        "F64" => DType::F64,
        "F8_E4M3" => DType::F8E4M3,
        "U8" => DType::U8,
        "U32" => DType::U32,
        "I16" => DType::I16,
        "I32" => DType::I32,
        "I64" => DType::I64,
        _ => return None,
    };
    Some((dtype, dtype.size_in_bytes() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dir: &Path, header: &str, data: &[u8]) -> PathBuf {
        let path = dir.join("a.safetensors");
        let length = (header.len() as u64).to_le_bytes();
        std::fs::write(&path, [&length, header.as_bytes(), data].concat()).unwrap();
        path
    }

    #[test]
    fn values_of_every_type_are_those_of_candle() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("all.safetensors");
        let numbers: Vec<f32> = (0..300_007).map(|i| (i as f32 - 1000.0) * 0.37).collect();
        let plain = Tensor::new(numbers.as_slice(), &Device::Cpu).unwrap();
        let types = [DType::F32, DType::F16, DType::BF16, DType::F64, DType::F8E4M3, DType::I64, DType::U8];
        let all: std::collections::HashMap<String, Tensor> =
            types.iter().map(|t| (t.as_str().to_string(), plain.to_dtype(*t).unwrap())).collect();
        candle_core::safetensors::save(&all, &path).unwrap();
        let ours = SafetensorsFile::open(&path).unwrap();
        for (name, tensor) in &all {
            let expected = tensor.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
            let found = ours.read(name, &[numbers.len()]).unwrap();
            assert!(found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()), "{name}");
            assert_eq!(found.len(), expected.len());
        }
    }

    #[test]
    fn headers_that_contradict_themselves_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = |header: &str| {
            let path = file(dir.path(), header, &[0; 8]);
            format!("{:#}", SafetensorsFile::open(&path).err().unwrap_or_else(|| panic!("{header}")))
        };
        let tensor = |name: &str, shape: &str, offsets: &str| {
            format!("\"{name}\": {{\"dtype\": \"F32\", \"shape\": {shape}, \"data_offsets\": {offsets}}}")
        };
        let good = format!("{{\"__metadata__\": {{\"format\": \"pt\"}}, {}}}", tensor("a", "[2]", "[0, 8]"));
        SafetensorsFile::open(&file(dir.path(), &good, &[0; 8])).unwrap();
        let twice = format!("{{{}, {}}}", tensor("a", "[1]", "[0, 4]"), tensor("a", "[1]", "[4, 8]"));
        assert!(error(&twice).contains("`a` is there twice"));
        for (shape, offsets) in [
            ("[3]", "[0, 8]"),
            ("[1]", "[0, 8]"),
            ("[2]", "[0, 9]"),
            ("[2]", "[4, 12]"),
            ("[2]", "[8, 0]"),
            ("[18446744073709551615, 18446744073709551615]", "[0, 8]"),
        ] {
            assert!(
                error(&format!("{{{}}}", tensor("a", shape, offsets))).contains("the tensor `a`"),
                "{shape} {offsets}"
            );
        }
        for (shape, offsets) in [("[-2]", "[0, 8]"), ("[2.0]", "[0, 8]"), ("[\"2\"]", "[0, 8]"), ("[2]", "[0, 8.0]")] {
            assert!(error(&format!("{{{}}}", tensor("a", shape, offsets))).contains("its header"), "{shape} {offsets}");
        }
        let overlap = format!("{{{}, {}}}", tensor("a", "[2]", "[0, 8]"), tensor("b", "[2]", "[0, 8]"));
        assert!(error(&overlap).contains("the tensor `b`"));
        assert!(error("{\"a\": 3}").contains("its header"));
    }

    #[test]
    fn a_file_that_is_cut_after_it_was_opened_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let header = "{\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]}}";
        let path = file(dir.path(), header, &[0; 8]);
        let open = SafetensorsFile::open(&path).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(12).unwrap();
        let error = format!("{:#}", open.read("a", &[2]).unwrap_err());
        assert!(error.contains("reading") && error.contains("a.safetensors"), "{error}");
    }
}
