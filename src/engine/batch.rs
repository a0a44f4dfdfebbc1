//! How many rows one call of a graph has. A batch that does not fit into memory is made smaller; values change by
//! float32 rounding only.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use selfrepair_core::components::Ablatable;
use selfrepair_core::config::RuntimeConfig;
use selfrepair_core::memory::available;
use selfrepair_core::progress;
use selfrepair_model::Architecture;

use crate::Needs;
use crate::residency::Residency;

/// Rows (runs × positions) in one call, unless the configuration says otherwise: activations of more rows fall out of
/// the cache.
const ROWS: usize = 600;

/// On a GPU, where no cache is to be fitted. If ONNX Runtime says that the card has no room for them, the batch is halved.
/// (Not tuned on a card yet.)
const ROWS_ON_GPU: usize = 16 * 1024;

/// Rows that the configuration asks for.
pub fn rows_wanted(config: &RuntimeConfig) -> usize {
    match (config.batch, config.device.as_str()) {
        (0, "cpu") => ROWS,
        (0, _) => ROWS_ON_GPU,
        (n, _) => n,
    }
}

/// Bytes that any run takes beside weights and activations: the program, ONNX Runtime, its graphs and their buffers.
pub const BASE: f64 = 100e6;

/// Bytes of a row while a block is computed.
pub fn in_block(a: &Architecture, prompt_len: usize) -> usize {
    let heads = a.heads * (3 * a.d_head + 3 * prompt_len);
    4 * (10 * a.d_model + 4 * a.active_neurons() + heads)
}

/// Rows that fit into what a run may take, at least one prompt's.
///
/// # Errors
/// If not even a prompt at a time fits into `runtime.memory`, or the weights into what the machine has left.
pub fn rows_that_fit(
    config: &RuntimeConfig,
    a: &Architecture,
    prompt_len: usize,
    ablated: &[Ablatable],
) -> Result<usize> {
    let needs = needs_of(a, prompt_len, ablated);
    // What attention gives and writes in layers with ablated heads, where that is normed.
    let kept = if a.write_norms { 8 * a.d_model * needs.first_readers.len() } else { 0 };
    // Logits, their exponentials and a copy, in the clean pass.
    let at_the_end = 12 * a.vocab;
    let row = ((in_block(a, prompt_len).max(at_the_end) + kept) * config.engine_count()) as f64;
    let (bytes, who) = match config.memory {
        0 => {
            let Some(bytes) = available() else { return Ok(usize::MAX) };
            (bytes, "this machine, or a control group that the program is in, has left only")
        }
        bytes => (bytes, "runtime.memory is only"),
    };
    if config.device == "cpu" {
        check_room(bytes, Residency::least(config, a, &needs), who)?;
    }
    let (weights, row) = match Residency::of(config, a, &needs) {
        Residency::All => (Residency::All.bytes(config, a, &needs), row),
        // Batches that wait for their layers keep what they have. Logits are of a prompt at a time.
        Residency::Some { .. } => {
            let in_calls = (config.engine_count() * (in_block(a, prompt_len) + kept)) as f64;
            (Residency::least(config, a, &needs), in_calls + Residency::bytes_of_row(config, a, &needs))
        }
    };
    // Half of what the weights leave may be activations.
    let left = (bytes as f64 - weights).max(0.0) / 2.0;
    Ok(((left / row) as usize).max(prompt_len))
}

/// Whether all layers fit into what a run may take, beside a prompt at a time.
pub fn all_layers_fit(config: &RuntimeConfig, a: &Architecture, prompt_len: usize, ablated: &[Ablatable]) -> bool {
    Residency::of(config, a, &needs_of(a, prompt_len, ablated)) == Residency::All
}

fn needs_of(a: &Architecture, prompt_len: usize, ablated: &[Ablatable]) -> Needs {
    let layers: BTreeSet<usize> = ablated.iter().filter(|c| c.head.is_some()).map(|c| c.layer).collect();
    let first_readers = if a.reads_by_difference() { layers.into_iter().collect() } else { vec![] };
    Needs { ablate: true, unembed: true, first_readers, rows: prompt_len, prompt_len, partners: 1, ..Needs::default() }
}

fn check_room(bytes: u64, needed: f64, who: &str) -> Result<()> {
    ensure!(
        bytes as f64 >= needed,
        "{who} {}, and this run takes at least {} of memory: give it more, or choose a smaller model, a shorter \
         corpus.prompt_len or fewer runtime.threads",
        progress::bytes(bytes),
        progress::bytes(needed as u64)
    );
    Ok(())
}
