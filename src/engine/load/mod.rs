//! Transforms exported graphs at load time: float32 weights in place of stored 16-bit floats (`widen`), a lower precision (`lower`), custom operators in place of chains of
//! standard ones (`fuse`), and padded rows (`pad`). The files do not change.

mod fuse;
mod lower;
mod pad;
mod widen;

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};
use prost::Message;
use selfrepair_core::own_files::read_record;

use crate::export::ExternalWeight;
use crate::export::onnx::{ModelProto, Role};
use fuse::Unbiased;
pub use fuse::{
    ACTIVATION, ADDITION, ATTENTION, HEAD_EFFECTS, NORM, NORM_SCALE, OWN_DOMAIN, READ_BY_DIFFERENCE, activation_named,
};
pub use lower::Lowering;
use pad::Padded;
pub use pad::{ALIASED, PADDING};
pub use widen::Narrow;

/// An exported graph as a device runs it.
pub struct Prepared {
    pub onnx: Vec<u8>,
    pub weights: Vec<Weight>,
    /// Outputs that have [`PADDING`] numbers behind each row.
    pub padded: BTreeSet<String>,
    /// Outputs that lack their bias.
    pub unbiased: Unbiased,
    /// A node has nothing but weights as inputs, and some of them were widened. ONNX Runtime would compute it when it loads
    /// the graph, from the file's 16-bit floats taken as float32.
    pub folds_widened: bool,
}

/// What a graph reads from its weights file, and how.
pub struct Weight {
    pub stored: ExternalWeight,
    /// If the file has 16-bit floats.
    pub narrow: Option<Narrow>,
    pub lowering: Option<Lowering>,
    /// Whether [`PADDING`] rows of zeros follow it.
    pub is_padded: bool,
}

/// Reads an exported graph and lowers its projections if wanted and if it has some. For a CPU, `fused` says to fuse
/// operators, and to pad rows of a multiple of so many numbers ([`ALIASED`], but for tests).
pub fn prepared(path: &Path, lowering: Option<Lowering>, fused: Option<usize>) -> Result<Prepared> {
    let bytes = read_record(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut model = ModelProto::decode(bytes.as_slice()).with_context(|| format!("{} is not ONNX", path.display()))?;
    let role = model.role();
    let lowering = lowering.filter(|_| role == Role::Projections);
    let graph = model.graph.as_mut().with_context(|| format!("{} has no graph", path.display()))?;
    let narrow = widen::widen(graph);
    let rounded = lowering.map(|lowering| lower::lower(graph, lowering)).unwrap_or_default();
    let weights = graph.external_weights().with_context(|| path.display().to_string())?;
    let (mut padded, mut unbiased) = (Padded::default(), Unbiased::new());
    if let Some(aliased) = fused {
        unbiased = fuse::fuse(graph);
        // Other graphs run once a prompt, and read the same weights in other ways.
        if role == Role::Projections {
            padded = pad::pad(graph, aliased);
        }
        model.opset_import.push(fuse::domain());
    }
    let weight = |stored: ExternalWeight| Weight {
        narrow: narrow.get(&stored.name).copied(),
        lowering: lowering.filter(|_| rounded.contains(&stored.name)),
        is_padded: padded.weights.contains(&stored.name),
        stored,
    };
    let weights = weights.into_iter().map(weight).collect();
    let is_widened = |name: &String| narrow.get(name).is_some_and(|narrow| narrow.is_widened);
    let folds_widened =
        graph.node.iter().any(|n| n.input.iter().all(|x| graph.is_constant(x)) && n.input.iter().any(is_widened));
    Ok(Prepared { onnx: model.encode_to_vec(), weights, padded: padded.outputs, unbiased, folds_widened })
}
