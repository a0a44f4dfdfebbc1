//! How many rows one call of a graph has. A batch that does not fit into memory is made smaller; values change by
//! float32 rounding only.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use selfrepair_core::components::Ablatable;
use selfrepair_core::config::RuntimeConfig;
use selfrepair_core::memory::available;
use selfrepair_core::progress;
use selfrepair_model::Architecture;

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

/// Bytes of weights while heads are ablated: once as they are read, the same again in the order that products want, and
/// W_O γ W of every head.
pub fn of_weights(a: &Architecture) -> f64 {
    4.0 * (2 * a.stored_numbers() + a.first_reader_weights()) as f64
}

/// Bytes that any run takes beside weights and activations: the program, ONNX Runtime, its graphs and their buffers.
const BASE: f64 = 100e6;

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
    let heads = a.heads * (3 * a.d_head + 3 * prompt_len);
    let in_block = 4 * (10 * a.d_model + 4 * a.active_neurons() + heads);
    // Logits, their exponentials and a copy, in the clean pass.
    let at_the_end = 12 * a.vocab;
    let layers: BTreeSet<usize> = ablated.iter().filter(|c| c.head.is_some()).map(|c| c.layer).collect();
    // What attention gives and writes in these layers, where that is normed.
    let kept = if a.write_norms { 8 * a.d_model * layers.len() } else { 0 };
    let row = ((in_block.max(at_the_end) + kept) * config.engine_count()) as f64;
    // W_O γ W is there for the layers whose heads are ablated only.
    let share = layers.len() as f64 / a.layers as f64;
    let twice = 4.0 * (2 * a.stored_numbers()) as f64;
    let weights = twice + (of_weights(a) - twice) * share;
    let bytes = match config.memory {
        0 => {
            let Some(bytes) = available() else { return Ok(usize::MAX) };
            if config.device == "cpu" {
                check_room(
                    bytes,
                    BASE + twice,
                    "this machine, or a control group that the program is in, has left only",
                )?;
            }
            bytes
        }
        bytes => {
            if config.device == "cpu" {
                check_room(bytes, BASE + weights + prompt_len as f64 * row, "runtime.memory is only")?;
            }
            bytes
        }
    };
    // Half of what the weights leave may be activations.
    let left = (bytes as f64 - BASE - weights).max(0.0) / 2.0;
    Ok(((left / row) as usize).max(prompt_len))
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
