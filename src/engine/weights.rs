//! Weights shared between sessions: read once, and put into the order that matrix products want once, however many
//! graphs and threads use them.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use ort::session::builder::PrepackedWeights;
use ort::value::DynValue;

use super::runtime::{half_tensor, tensor};
use crate::export::{ExternalWeight, Lowering};

/// File, offset, shape, and how it is rounded.
type Place = (String, u64, Vec<usize>, Option<Lowering>);

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
    pub fn of_graph(&self, weights: Vec<(ExternalWeight, Option<Lowering>)>) -> Result<Vec<(String, Arc<DynValue>)>> {
        weights.into_iter().map(|(w, lowering)| Ok((w.name.clone(), self.tensor(w, lowering)?))).collect()
    }

    fn tensor(&self, weight: ExternalWeight, lowering: Option<Lowering>) -> Result<Arc<DynValue>> {
        let key = (weight.file, weight.offset, weight.dims, lowering);
        let mut tensors = self.tensors.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(found) = tensors.get(&key) {
            return Ok(found.clone());
        }
        let path = self.folder.join(&key.0);
        let place = || format!("{} does not hold the tensor {}", path.display(), weight.name);
        let mut bytes = vec![0; 4 * key.2.iter().product::<usize>()];
        File::open(&path).and_then(|file| file.read_exact_at(&mut bytes, key.1)).with_context(place)?;
        let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let value = Arc::new(match lowering {
            None => tensor(&key.2, values.collect())?,
            Some(Lowering { to, native: false }) => tensor(&key.2, values.map(|v| to.round(v)).collect())?,
            Some(Lowering { to, native: true }) => half_tensor(&key.2, values, to)?,
        });
        tensors.insert(key, value.clone());
        Ok(value)
    }
}
