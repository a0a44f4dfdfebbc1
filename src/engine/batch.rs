//! How many rows one call of a graph has. A batch that does not fit into memory is made smaller; values stay the same to
//! float32 rounding.

use selfrepair_core::config::RuntimeConfig;
use selfrepair_core::memory::available;
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

/// Bytes of weights while heads are ablated: once as they are mapped, the same again in the order that products want, and
/// W_O γ W of every head.
pub fn of_weights(a: &Architecture) -> f64 {
    4.0 * (2 * a.parameters() + a.first_reader_weights()) as f64
}

/// Rows that fit into what a run may take, at least one prompt's.
pub fn rows_that_fit(config: &RuntimeConfig, a: &Architecture, prompt_len: usize) -> usize {
    let Some(bytes) = Some(config.memory).filter(|&m| m > 0).or_else(available) else { return usize::MAX };
    // Half of what the weights leave may be activations.
    let left = (bytes as f64 - of_weights(a)).max(0.0) / 2.0;
    let heads = a.heads * (3 * a.d_head + 3 * prompt_len);
    let in_block = 4 * (10 * a.d_model + 4 * a.d_mlp + heads) * config.engine_count();
    // Logits, their exponentials and a copy, in the clean pass.
    let at_the_end = 12 * a.vocab;
    ((left / in_block.max(at_the_end) as f64) as usize).max(prompt_len)
}
