//! A model as this program sees it: one architecture description and its weights, whatever file they came from.
//!
//! `source` finds the files, `checkpoint` reads named tensors out of them, and a family file (`llama`) maps a
//! checkpoint's configuration and tensor names to the [`Architecture`] and to [`LayerWeights`]. Everything after that
//! (export, engine) knows no families.

mod architecture;
mod checkpoint;
mod gguf;
mod llama;
mod source;

use anyhow::{Result, bail};

pub use architecture::{Architecture, Ends, LayerWeights};
pub use checkpoint::Checkpoint;
pub use gguf::{GgufFile, Value as GgufValue};
pub use source::{ModelSource, Origin};

/// A checkpoint together with the description of its architecture.
pub struct Model {
    pub architecture: Architecture,
    pub source: ModelSource,
    checkpoint: Checkpoint,
}

impl Model {
    /// Opens the checkpoint and reads its configuration; no weights are read yet.
    pub fn open(source: ModelSource) -> Result<Self> {
        let checkpoint = Checkpoint::open(&source)?;
        let architecture = match checkpoint.model_type()? {
            "llama" => llama::architecture(&checkpoint)?,
            other => bail!(
                "{}: the architecture `{other}` is not supported yet; supported: llama (Llama, SmolLM, TinyLlama, …)",
                source.path().display()
            ),
        };
        Ok(Self { architecture, source, checkpoint })
    }

    /// The weights of one block, read from disk at each call so that a large model is never held whole.
    pub fn layer(&self, layer: usize) -> Result<LayerWeights> {
        llama::layer(&self.checkpoint, &self.architecture, layer)
    }

    /// `W_O` of one block alone, [heads · d_head, d_model].
    pub fn w_o(&self, layer: usize) -> Result<ndarray::Array2<f32>> {
        llama::w_o(&self.checkpoint, &self.architecture, layer)
    }

    /// Embedding, final norm and unembedding.
    pub fn ends(&self) -> Result<Ends> {
        llama::ends(&self.checkpoint, &self.architecture)
    }

    /// The configuration as the checkpoint has it (a GGUF file's metadata under Hugging Face's names).
    pub fn config(&self) -> &serde_json::Value {
        self.checkpoint.config()
    }

    /// The GGUF file behind this model, if it came from one (its tokenizer is inside).
    pub fn gguf(&self) -> Option<&GgufFile> {
        self.checkpoint.gguf()
    }
}
