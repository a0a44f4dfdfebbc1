//! The necessary floating-point operations of a measurement. `bench` and dry runs use them.

use selfrepair_core::config::{Config, Kind};
use selfrepair_core::pieces::Piece;
use selfrepair_core::prompts::Prompts;
use selfrepair_model::Architecture;

/// Of the clean pass: every weight of every block, the directions, and the unembedding, times two a token.
pub fn trace_flops(a: &Architecture, prompts: &Prompts) -> f64 {
    let (attention, mlp) = a.block_weights();
    let directions = a.layers * a.d_model * a.heads * a.d_head;
    let weights = a.layers * (attention + mlp) + directions + a.vocab * a.d_model;
    2.0 * (weights * prompts.tokens()) as f64
}

/// Of a piece's ablations: for each token and component, two a weight that must run again. Clean passes are not counted.
pub fn ablate_flops(config: &Config, a: &Architecture, piece: &Piece, prompts: &Prompts) -> f64 {
    let tokens: usize = (0..prompts.count()).map(|p| prompts.needed(p).len()).sum();
    flops_of_token(config, a, piece) * tokens as f64
}

/// As [`ablate_flops`], of one token.
pub fn flops_of_token(config: &Config, a: &Architecture, piece: &Piece) -> f64 {
    let samples = |kind: Kind| if kind == Kind::Resample { config.ablation.resample.samples } else { 1 };
    piece.ablations().iter().map(|of| a.suffix_flops(&of.component) * samples(of.kind) as f64).sum()
}
