//! What is added to the scores of attention: biases by position, windows, and attention sinks.

use super::onnx::{GraphBuilder, int, ints};
use selfrepair_model::Alibi;

/// Biases [1, H, S, S] to add to the scores: those of the keys' positions, and the mask if there is one.
pub fn alibi_bias(
    g: &mut GraphBuilder,
    alibi: &Alibi,
    residual: &str,
    positions: &str,
    mask: Option<String>,
    prompt_len: usize,
) -> String {
    let heads = alibi.slopes.len();
    let table: Vec<f32> = (0..prompt_len).flat_map(|position| alibi.biases(position, prompt_len)).collect();
    let table = g.constant("alibi", &[prompt_len, heads], &table);
    // All rows of a batch have the same positions.
    let [from, to] = [0, 1].map(|i| g.int_constant(&format!("alibi_row_{i}"), &[i]));
    let positions = g.node("Slice", &[positions, &from, &to], "alibi_positions", vec![]);
    let of_keys = g.node("Gather", &[&table, &positions], "alibi_of_keys", vec![]);
    let by_head = g.node("Transpose", &[&of_keys], "alibi_by_head", vec![ints("perm", &[0, 2, 1])]);
    let axis = g.int_constant("alibi_axis", &[2]);
    let of_queries = g.node("Unsqueeze", &[&by_head, &axis], "alibi_of_queries", vec![]);
    match mask {
        Some(mask) => g.node("Add", &[&of_queries, &mask], "alibi_masked", vec![]),
        None => {
            let length = g.node("Shape", &[residual], "alibi_length", vec![int("start", 1), int("end", 2)]);
            let first = g.int_constant("alibi_heads", &[1, heads as i64]);
            let shape = g.node("Concat", &[&first, &length, &length], "alibi_shape", vec![int("axis", 0)]);
            g.node("Expand", &[&of_queries, &shape], "alibi_expanded", vec![])
        }
    }
}

/// A mask [S, S] to add to the scores: −∞ where a position looks back `window` places or more.
pub fn window_mask(g: &mut GraphBuilder, residual: &str, window: usize, prompt_len: usize) -> String {
    mask_where(g, residual, prompt_len, |query, key| key + window <= query)
}

/// As [`window_mask`], and −∞ at later positions too.
pub fn causal_mask(g: &mut GraphBuilder, residual: &str, window: Option<usize>, prompt_len: usize) -> String {
    mask_where(g, residual, prompt_len, |query, key| key > query || window.is_some_and(|w| key + w <= query))
}

/// A mask [S, S]: −∞ where a query must not see a key.
fn mask_where(
    g: &mut GraphBuilder,
    residual: &str,
    prompt_len: usize,
    hidden: impl Fn(usize, usize) -> bool,
) -> String {
    let value = |i: usize| if hidden(i / prompt_len, i % prompt_len) { f32::NEG_INFINITY } else { 0.0 };
    let values: Vec<f32> = (0..prompt_len * prompt_len).map(value).collect();
    let mask = g.constant("window_mask", &[prompt_len, prompt_len], &values);
    let shape = g.node("Shape", &[residual], "length", vec![int("start", 1), int("end", 2)]);
    let ends = g.node("Concat", &[&shape, &shape], "mask_end", vec![int("axis", 0)]);
    let starts = g.int_constant("mask_start", &[0, 0]);
    g.node("Slice", &[&mask, &starts, &ends], "mask", vec![])
}

/// A mask [S, S] with a key before all others, whose score of each head is its sink: [1, H, S, S + 1].
pub fn with_sinks(g: &mut GraphBuilder, sinks: &[f32], mask: &str) -> String {
    let heads = sinks.len() as i64;
    let scores = g.constant("sinks", &[1, sinks.len(), 1, 1], sinks);
    let rows = g.node("Shape", &[mask], "mask_rows", vec![int("start", 0), int("end", 1)]);
    let columns = g.node("Shape", &[mask], "mask_columns", vec![int("start", 1), int("end", 2)]);
    let [lead, one] = [("sink_heads", &[1, heads][..]), ("sink_column", &[1])].map(|(n, v)| g.int_constant(n, v));
    let shape = g.node("Concat", &[&lead, &rows, &one], "sink_shape", vec![int("axis", 0)]);
    let scores = g.node("Expand", &[&scores, &shape], "sink_scores", vec![]);
    let shape = g.node("Concat", &[&lead, &rows, &columns], "mask_shape", vec![int("axis", 0)]);
    let mask = g.node("Expand", &[mask, &shape], "mask_by_head", vec![]);
    g.node("Concat", &[&scores, &mask], "mask_with_sinks", vec![int("axis", -1)])
}

/// Keys or values [B, S, width] after a row of zeros: [B, S + 1, width].
pub fn after_empty_row(g: &mut GraphBuilder, x: &str, width: usize, name: &str) -> String {
    let batch = g.node("Shape", &[x], &format!("{name}_batch"), vec![int("start", 0), int("end", 1)]);
    let row = g.int_constant(&format!("{name}_row"), &[1, width as i64]);
    let shape = g.node("Concat", &[&batch, &row], &format!("{name}_shape"), vec![int("axis", 0)]);
    let empty = g.node("ConstantOfShape", &[&shape], &format!("{name}_empty"), vec![]);
    g.node("Concat", &[&empty, x], name, vec![int("axis", 1)])
}
