//! One function a graph. Shapes: B runs in a batch (ablations or prompts), P directions to broadcast over them
//! (P = B, or 1 when all runs share a prompt), S positions, D = d_model, H heads.
//!
//! Effects leave the graphs as dot products with the *unscaled* direction `u = γ ⊙ Ŵ[target]`; dividing by the clean
//! scale of the final norm makes them direct effects, and is left to the caller, so that the clean pass needs no
//! second pass once its scale is known.

use anyhow::Result;
use ndarray::{Array2, Axis};

use super::onnx::{Dim, GraphBuilder, Stored, WeightsFile, float, int};
use crate::model::{Architecture, Ends, LayerWeights};

const B: Dim = Dim::Name("B");
const P: Dim = Dim::Name("P");
const S: Dim = Dim::Name("S");

/// Where the weights of a block lie in the weights file.
pub struct StoredLayer {
    attention_norm: Stored,
    w_q: Stored,
    w_k: Stored,
    w_v: Stored,
    w_o: Stored,
    mlp_norm: Stored,
    w_gate: Stored,
    w_in: Stored,
    w_out: Stored,
}

impl StoredLayer {
    pub fn append(file: &mut WeightsFile, w: LayerWeights, w_o: Stored) -> Result<Self> {
        let mut matrix = |name: &str, m: Array2<f32>| file.append(name, m.shape(), m.as_slice().unwrap_or(&[]), true);
        let (w_q, w_k, w_v) = (matrix("W_Q", w.w_q)?, matrix("W_K", w.w_k)?, matrix("W_V", w.w_v)?);
        let (w_gate, w_in, w_out) = (matrix("W_gate", w.w_gate)?, matrix("W_in", w.w_in)?, matrix("W_out", w.w_out)?);
        let mut vector = |name: &str, v: &[f32]| file.append(name, &[v.len()], v, true);
        let attention_norm = vector("attention_norm", w.attention_norm.as_slice().unwrap_or(&[]))?;
        let mlp_norm = vector("mlp_norm", w.mlp_norm.as_slice().unwrap_or(&[]))?;
        Ok(Self { attention_norm, w_q, w_k, w_v, w_o, mlp_norm, w_gate, w_in, w_out })
    }
}

/// Where the weights around the blocks lie.
pub struct EndWeights {
    embedding: Stored,
    /// W_Uᵀ, [vocab, D]; the embedding itself when tied.
    unembedding: Stored,
    final_norm: Stored,
    /// mean_v W_U, [D]: what centres the unembedding.
    unembedding_mean: Stored,
}

impl EndWeights {
    pub fn append(file: &mut WeightsFile, ends: Ends) -> Result<Self> {
        let mut matrix = |name: &str, m: &Array2<f32>| file.append(name, m.shape(), m.as_slice().unwrap_or(&[]), true);
        let embedding = matrix("W_E", &ends.embedding)?;
        let unembedding = match &ends.unembedding {
            Some(w) => matrix("W_U", w)?,
            None => embedding.clone(),
        };
        let source = ends.unembedding.as_ref().unwrap_or(&ends.embedding);
        let sum = source.axis_iter(Axis(0)).fold(vec![0f64; source.ncols()], |mut sum, row| {
            sum.iter_mut().zip(row).for_each(|(s, &v)| *s += v as f64);
            sum
        });
        let mean: Vec<f32> = sum.iter().map(|s| (s / source.nrows() as f64) as f32).collect();
        let gamma = ends.final_norm.as_slice().unwrap_or(&[]);
        let final_norm = file.append("final_norm", &[gamma.len()], gamma, true)?;
        let unembedding_mean = file.append("W_U_mean", &[mean.len()], &mean, true)?;
        Ok(Self { embedding, unembedding, final_norm, unembedding_mean })
    }
}

/// tokens [B, S] → residual [B, S, D].
pub fn embed(a: &Architecture, ends: &EndWeights, weights: &str) -> GraphBuilder {
    let mut g = GraphBuilder::new(super::EMBED, "Token ids to the residual stream before the first block.", weights);
    let tokens = g.int_input("tokens", &[B, S], "token ids");
    let w_e = g.weight(&ends.embedding);
    g.node("Gather", &[&w_e, &tokens], "residual", vec![]);
    g.output("residual", &[B, S, Dim::Size(a.d_model)], "the stream before block 0");
    g
}

/// residual [B, S, D] → residual after attention, z [B, S, H·d_head] and each head's dot product with `u`.
pub fn attention(a: &Architecture, layer: usize, w: &StoredLayer, prompt_len: usize, weights: &str) -> GraphBuilder {
    let (d, width) = (Dim::Size(a.d_model), Dim::Size(a.heads * a.d_head));
    let doc = format!("Attention of block {layer}, with every head's dot product with a direction.");
    let mut g = GraphBuilder::new(&super::attention_graph(layer), &doc, weights);
    let residual = g.input("residual", &[B, S, d], "the stream before this block");
    let positions = g.int_input("positions", &[B, S], "0, 1, … S - 1 in every row");
    let v = g.input("v", &[P, S, width], "W_O u of every head: its dot product with z is the head's effect");

    let normed = rms_norm(&mut g, a, &residual, &w.attention_norm, "normed");
    let q = project(&mut g, &normed, &w.w_q, "q");
    let k = project(&mut g, &normed, &w.w_k, "k");
    let values = project(&mut g, &normed, &w.w_v, "values");
    let (cos, sin) = rotary_tables(&mut g, a, prompt_len);
    let mut rotate = |x: &str, heads: usize, name: &str| {
        g.node("RotaryEmbedding", &[x, &cos, &sin, &positions], name, vec![int("num_heads", heads as i64)])
    };
    let (q, k) = (rotate(&q, a.heads, "q_rotated"), rotate(&k, a.kv_heads, "k_rotated"));
    let attributes = vec![
        int("q_num_heads", a.heads as i64),
        int("kv_num_heads", a.kv_heads as i64),
        int("is_causal", 1),
        float("scale", (a.d_head as f32).sqrt().recip()),
    ];
    let z = g.node("Attention", &[&q, &k, &values], "z", attributes);
    let written = project(&mut g, &z, &w.w_o, "written");
    g.node("Add", &[&residual, &written], "residual_mid", vec![]);

    let products = g.node("Mul", &[&z, &v], "z_times_v", vec![]);
    let shape = g.int_constant("head_shape", &[0, 0, a.heads as i64, a.d_head as i64]);
    let products = g.node("Reshape", &[&products, &shape], "z_times_v_by_head", vec![]);
    sum_last(&mut g, &products, "head_effects", 3);

    g.output("residual_mid", &[B, S, d], "the stream after attention");
    g.output("z", &[B, S, width], "each head's mixed values, before W_O");
    g.output("head_effects", &[B, S, Dim::Size(a.heads)], "each head's output · u");
    g
}

/// residual_mid [B, S, D] → residual after the MLP, and the MLP's dot product with `u`.
pub fn mlp(a: &Architecture, layer: usize, w: &StoredLayer, weights: &str) -> GraphBuilder {
    let d = Dim::Size(a.d_model);
    let doc = format!("MLP of block {layer}, with its dot product with a direction.");
    let mut g = GraphBuilder::new(&super::mlp_graph(layer), &doc, weights);
    let residual = g.input("residual_mid", &[B, S, d], "the stream after this block's attention");
    let u = g.input("u", &[P, S, d], "the direction γ ⊙ Ŵ[target]");
    let normed = rms_norm(&mut g, a, &residual, &w.mlp_norm, "normed");
    let gate = project(&mut g, &normed, &w.w_gate, "gate");
    let hidden = project(&mut g, &normed, &w.w_in, "hidden");
    // x · sigmoid(x): ONNX Runtime fuses the pair into one pass.
    let sigmoid = g.node("Sigmoid", &[&gate], "gate_sigmoid", vec![]);
    let silu = g.node("Mul", &[&gate, &sigmoid], "gate_silu", vec![]);
    let post = g.node("Mul", &[&silu, &hidden], "post", vec![]);
    let written = project(&mut g, &post, &w.w_out, "written");
    g.node("Add", &[&residual, &written], "residual_post", vec![]);
    let products = g.node("Mul", &[&written, &u], "written_times_u", vec![]);
    sum_last(&mut g, &products, "mlp_effect", 2);
    g.output("residual_post", &[B, S, d], "the stream after this block");
    g.output("mlp_effect", &[B, S], "the MLP's output · u");
    g.output("post", &[B, S, Dim::Size(a.d_mlp)], "the neurons' activations, before W_out");
    g
}

/// The stream with one head's z changed: residual + Δz W_O of the head each run names.
pub fn ablate(a: &Architecture, w_o: &[Stored], weights: &str) -> GraphBuilder {
    let d = Dim::Size(a.d_model);
    let mut g = GraphBuilder::new(super::ABLATE, "The stream after attention with one head's z changed.", weights);
    let residual = g.input("residual", &[P, S, d], "the clean stream after attention");
    let delta = g.input("z_change", &[B, S, Dim::Size(a.d_head)], "replacement z less clean z");
    let head = g.int_input("head", &[B], "layer · H + head");
    let all = w_o[0].spanning("W_O", &[a.layers * a.heads, a.d_head, a.d_model]);
    let all = g.weight(&all);
    let chosen = g.node("Gather", &[&all, &head], "W_O_of_head", vec![]);
    let change = g.node("MatMul", &[&delta, &chosen], "change", vec![]);
    g.node("Add", &[&residual, &change], "residual_mid", vec![]);
    g.output("residual_mid", &[B, S, d], "the ablated stream after attention");
    g
}

/// The final norm's scale and the stream's dot product with `u`: an ablated logit without unembedding.
pub fn readout(a: &Architecture, weights: &str) -> GraphBuilder {
    let d = Dim::Size(a.d_model);
    let mut g = GraphBuilder::new(super::READOUT, "The final norm's scale, and the stream along a direction.", weights);
    let residual = g.input("residual", &[B, S, d], "the stream after the last block");
    let u = g.input("u", &[P, S, d], "the direction γ ⊙ Ŵ[target]");
    let products = g.node("Mul", &[&residual, &u], "residual_times_u", vec![]);
    sum_last(&mut g, &products, "dot", 2);
    let square = g.node("Mul", &[&residual, &residual], "square", vec![]);
    let axes = g.int_constant("last_axis_of_square", &[2]);
    let mean = g.node("ReduceMean", &[&square, &axes], "mean_square", vec![int("keepdims", 0)]);
    let eps = g.constant("eps", &[], &[a.norm_eps]);
    let shifted = g.node("Add", &[&mean, &eps], "mean_square_eps", vec![]);
    g.node("Sqrt", &[&shifted], "norm_scale", vec![]);
    g.output("dot", &[B, S], "residual · u");
    g.output("norm_scale", &[B, S], "√(mean square + ε) of the stream");
    g
}

/// The directions of each position's target: u [P, S, D] and, for every layer, v = W_O u [P, S, H·d_head].
pub fn directions(a: &Architecture, ends: &EndWeights, w_o: &[Stored], weights: &str) -> GraphBuilder {
    let (d, width) = (Dim::Size(a.d_model), Dim::Size(a.heads * a.d_head));
    let mut g = GraphBuilder::new(super::DIRECTIONS, "The direction of each target in the stream and in z.", weights);
    let targets = g.int_input("targets", &[P, S], "the token whose logit is measured at each position");
    let w_u = g.weight(&ends.unembedding);
    let mean = g.weight(&ends.unembedding_mean);
    let gamma = g.weight(&ends.final_norm);
    let rows = g.node("Gather", &[&w_u, &targets], "rows", vec![]);
    let centred = g.node("Sub", &[&rows, &mean], "centred", vec![]);
    let u = g.node("Mul", &[&centred, &gamma], "u", vec![]);
    g.output("u", &[P, S, d], "γ ⊙ Ŵ[target]");
    for (l, stored) in w_o.iter().enumerate() {
        let w = g.weight(stored);
        let transposed = g.node("Transpose", &[&w], &format!("W_O_{l}_T"), vec![]);
        let name = format!("v_{l}");
        g.node("MatMul", &[&u, &transposed], &name, vec![]);
        g.output(&name, &[P, S, width], "W_O u of this layer's heads");
    }
    g
}

/// The whole distribution, for the clean pass: logits [B, S, vocab] and the target's log-probability.
pub fn unembed(a: &Architecture, ends: &EndWeights, weights: &str) -> GraphBuilder {
    let mut g = GraphBuilder::new(super::UNEMBED, "The stream after the last block to logits.", weights);
    let residual = g.input("residual", &[B, S, Dim::Size(a.d_model)], "the stream after the last block");
    let targets = g.int_input("targets", &[B, S], "the token whose log-probability is wanted");
    let normed = rms_norm(&mut g, a, &residual, &ends.final_norm, "normed");
    let rows_shape = g.int_constant("rows_shape", &[-1, a.d_model as i64]);
    let rows = g.node("Reshape", &[&normed, &rows_shape], "rows", vec![]);
    let w_u = g.weight(&ends.unembedding);
    let logits = g.node("Gemm", &[&rows, &w_u], "logits", vec![int("transB", 1)]);
    let axes = g.int_constant("vocab_axis", &[1]);
    let total = g.node("ReduceLogSumExp", &[&logits, &axes], "log_sum_exp", vec![int("keepdims", 1)]);
    let column = g.int_constant("column_shape", &[-1, 1]);
    let targets = g.node("Reshape", &[&targets, &column], "target_column", vec![]);
    let own = g.node("GatherElements", &[&logits, &targets], "target_logit", vec![int("axis", 1)]);
    g.node("Sub", &[&own, &total], "log_prob", vec![]);
    g.output("logits", &[Dim::Name("B·S"), Dim::Size(a.vocab)], "the model's logits");
    g.output("log_prob", &[Dim::Name("B·S"), Dim::Size(1)], "log-probability of the target, natural logarithm");
    g
}

fn project(g: &mut GraphBuilder, x: &str, w: &Stored, name: &str) -> String {
    let w = g.weight(w);
    g.node("MatMul", &[x, &w], name, vec![])
}

fn rms_norm(g: &mut GraphBuilder, a: &Architecture, x: &str, gamma: &Stored, name: &str) -> String {
    let gamma = g.weight(gamma);
    g.node("RMSNormalization", &[x, &gamma], name, vec![float("epsilon", a.norm_eps), int("axis", -1)])
}

fn sum_last(g: &mut GraphBuilder, x: &str, name: &str, axis: i64) -> String {
    let axes = g.int_constant(&format!("axis_of_{name}"), &[axis]);
    g.node("ReduceSum", &[x, &axes], name, vec![int("keepdims", 0)])
}

/// cos and sin of position · base^(−2i / d_head), [prompt_len, d_head / 2], from float64 angles.
fn rotary_tables(g: &mut GraphBuilder, a: &Architecture, prompt_len: usize) -> (String, String) {
    let half = a.d_head / 2;
    let angle = |i: usize| {
        let (position, pair) = (i / half, i % half);
        position as f64 * a.rotary_base.powf(-2.0 * pair as f64 / a.d_head as f64)
    };
    let table = |f: fn(f64) -> f64| (0..prompt_len * half).map(|i| f(angle(i)) as f32).collect::<Vec<_>>();
    let cos = g.constant("cos", &[prompt_len, half], &table(f64::cos));
    let sin = g.constant("sin", &[prompt_len, half], &table(f64::sin));
    (cos, sin)
}
