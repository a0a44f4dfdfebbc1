//! Models and corpora: checkpoints of many formats and families become one architecture description and its weights.
//!
//! `source` finds the files, `checkpoint` reads named tensors, and a family file (`families/`) maps a checkpoint's
//! configuration and tensor names to the [`Architecture`] and to [`LayerWeights`]. The later layers (export, engine) do
//! not depend on the family.

// What is read here comes from outside: it is an error where it is wrong, and no panic.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::get_unwrap
    )
)]

pub mod agreement;
mod architecture;
mod checkpoint;
pub mod corpus;
mod families;
mod fold;
mod gguf;
pub mod hub;
mod mlp;
mod nested;
mod non_finite;
mod pickle;
pub mod provision;
mod safetensors;
mod source;
mod unique;

pub use families::{NO_LIMIT, Unsupported, unsupported};

use anyhow::{Context, Result};

pub use architecture::{
    Activation, Alibi, Architecture, AttentionKind, Ends, LayerWeights, Linear, Norm, NormWeights, QkNorm, Rotary,
    WriteNorms,
};
pub use checkpoint::Checkpoint;
pub use fold::FoldedBiases;
pub use gguf::{ARCHITECTURES as GGUF_ARCHITECTURES, GgufFile, Value as GgufValue};
pub use mlp::{ClampedGate, ExpertWeighting, ExpertWeights, Experts, Mlp, MlpWeights, SharedExpert, Xielu};
pub use source::{ModelSource, Origin};

use families::Family;
use selfrepair_core::config::ModelConfig;

/// A checkpoint together with the description of its architecture.
pub struct Model {
    pub architecture: Architecture,
    pub source: ModelSource,
    checkpoint: Checkpoint,
    family: &'static Family,
}

impl Model {
    /// Opens the checkpoint and reads its configuration; no weights are read yet.
    pub fn open(source: ModelSource) -> Result<Self> {
        let checkpoint = Checkpoint::open(&source)?;
        Self::of(source, checkpoint)
    }

    /// Reads the configuration alone: of a model of the hub, no weights are fetched. Good for `pipeline model` only.
    pub fn open_configuration(config: &ModelConfig) -> Result<Self> {
        let source = ModelSource::resolve_configuration(config)?;
        let checkpoint = match &source {
            ModelSource::Directory { path, .. } => Checkpoint::open_configuration(path)?,
            ModelSource::Gguf { .. } => Checkpoint::open(&source)?,
        };
        Self::of(source, checkpoint)
    }

    fn of(source: ModelSource, mut checkpoint: Checkpoint) -> Result<Self> {
        let place = || source.path().display().to_string();
        let family = families::find(checkpoint.model_type()?).with_context(place)?;
        let keys = families::resolve(checkpoint.config(), family).with_context(place)?;
        checkpoint.set_keys(keys, family.spellings);
        let mut architecture = (family.architecture)(&checkpoint).with_context(place)?;
        let rotary = [&architecture.rotary, &architecture.window_rotary].into_iter().flatten();
        if let Some(longest) = rotary.filter_map(|rotary| rotary.longest).min() {
            architecture.context = architecture.context.min(longest);
        }
        if architecture.tied {
            checkpoint.tie();
        }
        Ok(Self { architecture, source, checkpoint, family })
    }

    /// The weights of one block, read from disk at each call so that a large model is never held whole.
    pub fn layer(&self, layer: usize) -> Result<LayerWeights> {
        (self.family.layer)(&self.checkpoint, &self.architecture, layer)
    }

    /// Embedding, final norm and unembedding.
    pub fn ends(&self) -> Result<Ends> {
        (self.family.ends)(&self.checkpoint, &self.architecture)
    }

    /// After every weight was read: whether the checkpoint has others, which would mean a variation of the family that
    /// this program does not know.
    pub fn check_nothing_was_left_out(&self) -> Result<()> {
        self.checkpoint.check_nothing_was_left_out()
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
