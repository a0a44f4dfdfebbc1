//! Weights shared between sessions: read and prepacked once for all graphs and threads.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use bytemuck::{Pod, Zeroable};
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};
use ort::session::builder::PrepackedWeights;
use ort::value::{DynValue, Tensor};
use selfrepair_core::memory::try_with_capacity;
use selfrepair_core::precision::Half;

use super::runtime::{half_tensor, tensor};
use crate::export::onnx::Element;
use crate::load::{ALIASED, Lowering, PADDING, Weight};

/// What tells one tensor from another.
#[derive(PartialEq, Eq, Hash)]
struct Place {
    file: String,
    offset: u64,
    dims: Vec<usize>,
    lowering: Option<Lowering>,
    is_padded: bool,
    /// As the file has it.
    element: Element,
    /// As the graph takes it.
    is_half: bool,
}

pub struct SharedWeights {
    folder: PathBuf,
    prepacked: Option<PrepackedWeights>,
    tensors: Mutex<HashMap<Place, Arc<DynValue>>>,
}

impl SharedWeights {
    /// The weights of the graphs in `folder`; ONNX Runtime must be loaded.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_path_buf(), prepacked: Some(PrepackedWeights::new()), tensors: Mutex::default() }
    }

    /// As [`SharedWeights::new`], but in memory once: not a second time in the order that products want.
    pub fn once(folder: &Path) -> Self {
        Self { prepacked: None, ..Self::new(folder) }
    }

    pub fn prepacked(&self) -> Option<&PrepackedWeights> {
        self.prepacked.as_ref()
    }

    /// The weights that a graph refers to, by their names in it.
    pub fn of_graph(&self, weights: Vec<Weight>) -> Result<Vec<(String, Arc<DynValue>)>> {
        weights.into_iter().map(|w| Ok((w.stored.name.clone(), self.tensor(w)?))).collect()
    }

    /// Lets go of tensors that no loaded graph reads, if most graphs read them padded.
    pub fn release(&self) {
        let mut tensors = self.tensors.lock().unwrap_or_else(|e| e.into_inner());
        let is_aliased = |place: &Place| place.dims.first().is_some_and(|rows| rows.is_multiple_of(ALIASED));
        tensors.retain(|place, tensor| !is_aliased(place) || Arc::strong_count(tensor) > 1);
    }

    fn tensor(&self, Weight { stored, narrow, lowering, is_padded }: Weight) -> Result<Arc<DynValue>> {
        let place = Place {
            file: stored.file,
            offset: stored.offset,
            dims: stored.dims,
            lowering,
            is_padded,
            element: narrow.map_or(Element::F32, |narrow| narrow.element),
            is_half: narrow.is_some_and(|narrow| !narrow.is_widened),
        };
        let mut tensors = self.tensors.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(found) = tensors.get(&place) {
            return Ok(found.clone());
        }
        let path = self.folder.join(&place.file);
        let value = place.read(&path);
        let value = value.with_context(|| format!("{} does not hold the tensor {}", path.display(), stored.name))?;
        let value = Arc::new(value);
        tensors.insert(place, value.clone());
        Ok(value)
    }
}

impl Place {
    fn read(&self, path: &Path) -> Result<DynValue> {
        let mut dims = self.dims.clone();
        if let (true, Some(rows)) = (self.is_padded, dims.first_mut()) {
            *rows += PADDING;
        }
        if let (true, Element::Half(half)) = (self.is_half, self.element) {
            let bits: Vec<u16> = self.stored(path, 0)?;
            return match half {
                Half::Bf16 => Ok(Tensor::from_array((shape(&dims), bits.reinterpret_into::<bf16>()))?.into_dyn()),
                Half::Fp16 => Ok(Tensor::from_array((shape(&dims), bits.reinterpret_into::<f16>()))?.into_dyn()),
            };
        }
        let values = self.floats(path)?;
        match self.lowering {
            None => tensor(&dims, values),
            Some(Lowering { to, native: false }) => tensor(&dims, values.into_iter().map(|v| to.round(v)).collect()),
            Some(Lowering { to, native: true }) => half_tensor(&dims, values.into_iter(), to),
        }
    }

    /// The numbers as float32, with zeros behind them if they are padded.
    fn floats(&self, path: &Path) -> Result<Vec<f32>> {
        let padding = match self.dims.first() {
            Some(&rows) if self.is_padded && rows > 0 => self.dims.iter().product::<usize>() / rows * PADDING,
            _ => 0,
        };
        match self.element {
            Element::F32 => {
                let mut values: Vec<f32> = self.stored(path, padding)?;
                // Stored as little-endian; nothing to do on a processor that is.
                values.iter_mut().for_each(|value| *value = f32::from_bits(u32::from_le(value.to_bits())));
                Ok(values)
            }
            Element::Half(half) => {
                let bits: Vec<u16> = self.stored(path, 0)?;
                let mut values = try_with_capacity(bits.len() + padding)?;
                match half {
                    Half::Bf16 => values.extend(bits.iter().map(|&bits| f32::from_bits(u32::from(bits) << 16))),
                    Half::Fp16 => values.extend(bits.iter().map(|&bits| f16::from_bits(bits).to_f32())),
                }
                values.resize(bits.len() + padding, 0.0);
                Ok(values)
            }
        }
    }

    /// The numbers as they are stored, with so many zeros behind them.
    fn stored<T: Pod + Zeroable>(&self, path: &Path, padding: usize) -> Result<Vec<T>> {
        let file = File::open(path)?;
        let count = self.dims.iter().try_fold(1usize, |count, &dim| count.checked_mul(dim));
        // Before memory is taken for it: the shape is what the graph's file says.
        let end = count.and_then(|n| (n as u64).checked_mul(size_of::<T>() as u64)?.checked_add(self.offset));
        ensure!(end.is_some_and(|end| file.metadata().is_ok_and(|m| end <= m.len())), "its shape is {:?}", self.dims);
        let count = count.unwrap_or(0);
        let mut values = try_with_capacity(count + padding)?;
        values.resize(count + padding, T::zeroed());
        file.read_exact_at(bytemuck::cast_slice_mut(&mut values[..count]), self.offset)?;
        Ok(values)
    }
}

fn shape(dims: &[usize]) -> Vec<i64> {
    dims.iter().map(|&n| n as i64).collect()
}
