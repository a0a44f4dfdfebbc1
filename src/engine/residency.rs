//! How many layers are in memory: all of them, or as many as fit at a time.

use selfrepair_core::config::RuntimeConfig;
use selfrepair_core::memory::available;
use selfrepair_model::Architecture;

use crate::Needs;
use crate::batch::{BASE, in_block, rows_wanted};

/// How the layers of a model are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residency {
    /// All of them, prepacked, and W_O γ W of the heads that are ablated.
    All,
    /// At most so many, as they are, for so many batches that go through the layers together.
    Some { layers: usize, tasks: usize },
}

impl Residency {
    /// All layers if they fit into `runtime.memory`, or into what the machine has left, with a prompt at a time; batches are
    /// then as large as there is room for. Unless the configuration says which.
    pub fn of(config: &RuntimeConfig, a: &Architecture, needs: &Needs) -> Self {
        let bytes = match config.memory {
            0 => available().map_or(f64::INFINITY, |bytes| bytes as f64),
            bytes => bytes as f64,
        };
        let one_prompt = Needs { rows: needs.prompt_len, ..needs.clone() };
        let fits = || config.device != "cpu" || Memory::of(config, a, &one_prompt).all <= bytes;
        if config.all_layers.unwrap_or_else(fits) {
            return Self::All;
        }
        let memory = Memory::of(config, a, needs);
        let left = (bytes - memory.fixed - memory.activations).max(0.0);
        Self::Some { layers: ((left / memory.block) as usize).clamp(1, a.layers), tasks: tasks(config) }
    }

    /// Bytes that a run takes.
    pub fn bytes(self, config: &RuntimeConfig, a: &Architecture, needs: &Needs) -> f64 {
        let memory = Memory::of(config, a, needs);
        match self {
            Self::All => memory.all,
            Self::Some { layers, .. } => memory.fixed + memory.activations + layers as f64 * memory.block,
        }
    }

    /// Bytes of a run with one layer at a time, or with all of them if that is less.
    pub fn least(config: &RuntimeConfig, a: &Architecture, needs: &Needs) -> f64 {
        Self::Some { layers: 1, tasks: tasks(config) }.bytes(config, a, needs).min(Self::All.bytes(config, a, needs))
    }

    /// Bytes that a row of each batch takes between calls, where layers are not all there.
    pub fn bytes_of_row(config: &RuntimeConfig, a: &Architecture, needs: &Needs) -> f64 {
        (tasks(config) * kept(a, needs)) as f64
    }
}

/// Bytes of a number in the file of weights.
pub fn bytes_of_number(a: &Architecture) -> usize {
    if ["BF16", "F16"].contains(&a.dtype.as_str()) { 2 } else { 4 }
}

/// Bytes of a row between calls. The clean pass keeps z and what the parts write in all layers; ablations keep z, also of
/// partners, W_O u and the stream. Neurons that are measured, and their directions, are those of all experts.
fn kept(a: &Architecture, needs: &Needs) -> usize {
    let (width, d) = (a.heads * a.d_head, a.d_model);
    let of_trace = width + 2 * d;
    let of_layer = if needs.ablate { of_trace.max((2 + needs.partners) * width + d) } else { of_trace };
    4 * (a.layers * of_layer + 3 * needs.neurons.len() * a.d_mlp)
}

/// Batches that go through the layers together: while one reads its results, another computes.
fn tasks(config: &RuntimeConfig) -> usize {
    2 * config.thread_count()
}

/// Bytes that the parts of a run take.
struct Memory {
    /// All layers and everything else.
    all: f64,
    /// What is there with any number of layers: the program, the embedding, the unembedding.
    fixed: f64,
    /// Of a layer, as float32.
    block: f64,
    /// Of batches.
    activations: f64,
}

impl Memory {
    fn of(config: &RuntimeConfig, a: &Architecture, needs: &Needs) -> Self {
        let (width, d) = (a.heads * a.d_head, a.d_model);
        let (attention, mlp) = a.stored_block_weights();
        // W_O as directions read it, and by head to replace heads.
        let of_heads = width * d * (1 + usize::from(needs.ablate));
        let block = 4.0 * (attention + mlp + of_heads) as f64;
        let of_neurons = 4.0 * (needs.neurons.len() * a.d_mlp * d) as f64;

        let stored = bytes_of_number(a);
        let tables = if a.tied && !a.embedding_norm { 1 } else { 2 };
        let matrix = if needs.unembed || needs.divergence { 4 } else { 0 };
        let ends = a.vocab * d * (stored * tables + matrix);
        let fixed = BASE + of_neurons + ends as f64;

        let (rows, threads) = (rows_wanted(config), config.thread_count());
        let in_flight = needs.rows.min(tasks(config) * rows);
        let in_calls = threads * needs.rows.min(rows) * in_block(a, needs.prompt_len);
        let logits = if matrix > 0 { tasks(config) * needs.prompt_len * 12 * a.vocab } else { 0 };
        let activations = (in_flight * kept(a, needs) + in_calls + logits) as f64;

        let combined = 4.0 * a.first_reader_weights() as f64 * needs.first_readers.len() as f64 / a.layers as f64;
        let prepacked = 8.0 * a.stored_numbers() as f64;
        Self { all: BASE + prepacked + combined + activations, fixed, block, activations }
    }
}
