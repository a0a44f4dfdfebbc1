//! Weights shared between sessions: read and prepacked once for all graphs and threads.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use ort::session::builder::PrepackedWeights;
use ort::value::DynValue;

use super::runtime::{half_tensor, tensor};
use crate::load::{ALIASED, Lowering, PADDING, Weight};

/// What tells one tensor from another.
#[derive(PartialEq, Eq, Hash)]
struct Place {
    file: String,
    offset: u64,
    dims: Vec<usize>,
    lowering: Option<Lowering>,
    is_padded: bool,
}

pub struct SharedWeights {
    folder: PathBuf,
    prepacked: PrepackedWeights,
    tensors: Mutex<HashMap<Place, Arc<DynValue>>>,
}

impl SharedWeights {
    /// The weights of the graphs in `folder`; ONNX Runtime must be loaded.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_path_buf(), prepacked: PrepackedWeights::new(), tensors: Mutex::default() }
    }

    pub fn prepacked(&self) -> &PrepackedWeights {
        &self.prepacked
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

    fn tensor(&self, Weight { stored, lowering, is_padded }: Weight) -> Result<Arc<DynValue>> {
        let place = Place { file: stored.file, offset: stored.offset, dims: stored.dims, lowering, is_padded };
        let mut tensors = self.tensors.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(found) = tensors.get(&place) {
            return Ok(found.clone());
        }
        let path = self.folder.join(&place.file);
        let values = read(&path, &place)
            .with_context(|| format!("{} does not hold the tensor {}", path.display(), stored.name))?;
        let mut dims = place.dims.clone();
        if let (true, Some(rows)) = (is_padded, dims.first_mut()) {
            *rows += PADDING;
        }
        let value = Arc::new(match lowering {
            None => tensor(&dims, values)?,
            Some(Lowering { to, native: false }) => tensor(&dims, values.into_iter().map(|v| to.round(v)).collect())?,
            Some(Lowering { to, native: true }) => half_tensor(&dims, values.into_iter(), to)?,
        });
        tensors.insert(place, value.clone());
        Ok(value)
    }
}

/// A tensor's numbers, with zeros behind them if it is padded.
fn read(path: &Path, place: &Place) -> Result<Vec<f32>> {
    let file = File::open(path)?;
    let count = place.dims.iter().try_fold(1usize, |count, &dim| count.checked_mul(dim));
    // Before memory is taken for it: the shape is what the graph's file says.
    let end = count.and_then(|n| (n as u64).checked_mul(size_of::<f32>() as u64)?.checked_add(place.offset));
    ensure!(end.is_some_and(|end| file.metadata().is_ok_and(|m| end <= m.len())), "its shape is {:?}", place.dims);
    let count = count.unwrap_or(0);
    let padding = match place.dims.first() {
        Some(&rows) if place.is_padded && rows > 0 => count / rows * PADDING,
        _ => 0,
    };
    let mut values = vec![0f32; count + padding];
    file.read_exact_at(bytemuck::cast_slice_mut(&mut values[..count]), place.offset)?;
    // Stored as little-endian; nothing to do on a processor that is.
    for value in &mut values {
        *value = f32::from_bits(u32::from_le(value.to_bits()));
    }
    Ok(values)
}
