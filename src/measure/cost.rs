//! The necessary floating-point operations of a measurement. `bench` and dry runs use them.

use selfrepair_core::components::Ablatable;
use selfrepair_core::config::{Config, Kind};
use selfrepair_core::prompts::Prompts;
use selfrepair_model::Architecture;

/// Of the clean pass: every weight of every block, the directions, and the unembedding, times two a token.
pub fn trace_flops(a: &Architecture, prompts: &Prompts) -> f64 {
    let (attention, mlp) = a.block_weights();
    let directions = a.layers * a.d_model * a.heads * a.d_head;
    let weights = a.layers * (attention + mlp) + directions + a.vocab * a.d_model;
    2.0 * (weights * prompts.tokens()) as f64
}

/// Of all ablations: for each token and component, two a weight that must run again. Clean passes are not counted.
pub fn ablate_flops(config: &Config, a: &Architecture, components: &[Ablatable], prompts: &Prompts) -> f64 {
    let c = &config.ablation;
    let samples = |kind: &Kind| if *kind == Kind::Resample { c.resample.samples } else { 1 };
    let runs = c.kinds.iter().map(samples).sum::<usize>() * (1 + c.hold.len());
    let tokens: usize = (0..prompts.count()).map(|p| prompts.needed(p).len()).sum();
    components.iter().map(|c| a.suffix_flops(c)).sum::<f64>() * (runs * tokens) as f64
}
