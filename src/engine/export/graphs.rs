//! The graphs of a block. Shapes: B runs in a batch (ablations or prompts), P directions to broadcast over them
//! (P = B, or 1 when all runs share a prompt), S positions, D = d_model, H heads.
//!
//! The graphs output effects as dot products with the *unscaled* direction `u = γ ⊙ Ŵ\[target\]`. The caller divides by
//! the clean scale of the final norm to get direct effects. So the clean pass needs no second pass once its scale is
//! known.

use super::experts;
use super::masks::{after_empty_row, alibi_bias, causal_mask, window_mask, with_sinks};
use super::onnx::{Dim, GraphBuilder, Role, Stored, float, int, ints, string};
use super::readers::{Reading, norm_scale, normed};
use super::stored::{StoredLayer, StoredMlp, StoredMlps};
use crate::hooks::{HookPoint, Projection};
use selfrepair_model::{Activation, Architecture, Norm, QkNorm, Rotary, Xielu};

pub const B: Dim = Dim::Name("B");
pub const P: Dim = Dim::Name("P");
pub const S: Dim = Dim::Name("S");

/// What a block's graph can do besides running the block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    Plain,
    /// Components that a mask names are held at given values, position by position.
    Held,
    /// Who attends to whom is an input, not the causal order.
    Masked,
    /// The first to read a head that was replaced (see [`super::readers`]).
    AfterHead,
}

/// residual [B, S, D] → residual after attention, z [B, S, H·d_head] and each head's dot product with `u`.
pub fn attention(
    a: &Architecture,
    layer: usize,
    w: &StoredLayer,
    prompt_len: usize,
    weights: &str,
    variant: Variant,
) -> GraphBuilder {
    let (d, width) = (Dim::Size(a.d_model), Dim::Size(a.heads * a.d_head));
    let kind = a.attention[layer];
    let doc = format!("Attention of block {layer}, with every head's dot product with a direction.");
    let name = match variant {
        Variant::Plain => super::attention_graph(layer),
        Variant::Held => super::attention_held_graph(layer),
        Variant::Masked => super::attention_masked_graph(layer),
        Variant::AfterHead => super::attention_after_head_graph(layer),
    };
    let mut g = GraphBuilder::new(&name, Role::Projections, &doc, weights);
    let residual = g.input(HookPoint::ResidPre, &[B, S, d], "the stream before this block");
    let positions = g.int_input(HookPoint::Positions, &[B, S], "0, 1, … S - 1 in every row");
    let v = g.input(HookPoint::V, &[P, S, width], "W_O u of every head: its dot product with z is the head's effect");

    let read = match variant {
        Variant::AfterHead => Reading::after_head(&mut g, a, &residual),
        _ => Reading::of(&mut g, a, &residual, &w.attention_norm),
    };
    let mut q = read.project(&mut g, Projection::Q, &w.w_q, &w.b_q);
    let mut k = read.project(&mut g, Projection::K, &w.w_k, &w.b_k);
    // Without the value bias where it is folded into b_O: z is free of it.
    let mut values = read.project(&mut g, Projection::V, &w.w_v, &w.b_v);
    if let Some((q_norm, k_norm)) = &w.qk_norm {
        q = norm_heads(&mut g, a, &q, q_norm, "q_normed", a.heads);
        k = norm_heads(&mut g, a, &k, k_norm, "k_normed", a.kv_heads);
    }
    if let Some(rotary) = a.rotary_of(layer) {
        let dims = 2 * rotary.inverse_frequencies.len();
        // ONNX Runtime wants a row for each row it reads, and a masked run reads every position twice.
        let rows = if variant == Variant::Masked { 2 * prompt_len } else { prompt_len };
        let (cos, sin) = rotary_tables(&mut g, rotary, rows);
        let mut rotate = |x: &str, heads: usize, name: &str| {
            let mut attributes = vec![int("num_heads", heads as i64)];
            if dims < a.d_head {
                attributes.push(int("rotary_embedding_dim", dims as i64));
            }
            g.node("RotaryEmbedding", &[x, &cos, &sin, &positions], name, attributes)
        };
        (q, k) = (rotate(&q, a.heads, "q_rotated"), rotate(&k, a.kv_heads, "k_rotated"));
    }
    let is_causal = variant != Variant::Masked && w.sinks.is_none();
    let mut attributes = vec![
        int("q_num_heads", a.heads as i64),
        int("kv_num_heads", a.kv_heads as i64),
        int("is_causal", i64::from(is_causal)),
        float("scale", kind.scale),
    ];
    attributes.extend(a.score_softcap.map(|cap| float("softcap", cap)));
    // A window no shorter than the prompt hides nothing.
    let window = kind.window.filter(|&window| window < prompt_len);
    let mut mask = match (variant, &w.sinks, window) {
        (Variant::Masked, ..) => Some(g.input(HookPoint::Mask, &[S, S], "0 where a position may look, −∞ where not")),
        (_, Some(_), _) => Some(causal_mask(&mut g, &residual, window, prompt_len)),
        (_, None, Some(window)) => Some(window_mask(&mut g, &residual, window, prompt_len)),
        (_, None, None) => None,
    };
    if let Some(alibi) = &a.alibi {
        mask = Some(alibi_bias(&mut g, alibi, &residual, &positions, mask, prompt_len));
    }
    if let Some((sinks, causal)) = w.sinks.as_ref().zip(mask.as_ref()) {
        mask = Some(with_sinks(&mut g, sinks, causal));
        k = after_empty_row(&mut g, &k, a.kv_heads * a.d_head, "k_after_sink");
        values = after_empty_row(&mut g, &values, a.kv_heads * a.d_head, "v_after_sink");
    }
    let z = HookPoint::HookZ.name();
    let free = if variant == Variant::Held { "z_not_held" } else { &z };
    let mut z = match mask {
        Some(mask) => g.node("Attention", &[&q, &k, &values, &mask], free, attributes),
        None => g.node("Attention", &[&q, &k, &values], free, attributes),
    };
    if variant == Variant::Held {
        z = hold_heads(&mut g, a, &z);
    }
    match &w.write_norms {
        None => drop(project(&mut g, &z, &w.w_o, &w.b_o, &HookPoint::AttnOut.name())),
        Some((gamma, _)) => {
            let linear = HookPoint::AttnLinear;
            let before = project(&mut g, &z, &w.w_o, &w.b_o, &linear.name());
            norm_written(&mut g, a, &before, gamma, &HookPoint::AttnOut.name(), HookPoint::AttnWriteScale);
            g.output(linear, &[B, S, d], "what attention gives before the norm on what it writes");
        }
    }
    g.node("Add", &[&residual, &HookPoint::AttnOut.name()], &HookPoint::ResidMid.name(), vec![]);

    let products = g.node("Mul", &[&z, &v], "z_times_v", vec![]);
    let products = reshape(&mut g, &products, &[0, 0, a.heads as i64, a.d_head as i64], "z_times_v_by_head");
    sum_last(&mut g, &products, &HookPoint::HeadEffects.name(), 3);

    g.output(HookPoint::ResidMid, &[B, S, d], "the stream with attention added");
    g.output(HookPoint::HookZ, &[B, S, width], "each head's mixed values, before W_O");
    g.output(HookPoint::HeadEffects, &[B, S, Dim::Size(a.heads)], "each head's output · u");
    g.output(HookPoint::AttnOut, &[B, S, d], "what attention adds to the stream, b_O' included");
    g
}

/// z with the heads that `held` names replaced by `held_z`.
fn hold_heads(g: &mut GraphBuilder, a: &Architecture, z: &str) -> String {
    let (heads, width) = (Dim::Size(a.heads), Dim::Size(a.heads * a.d_head));
    let held = g.bool_input(HookPoint::Held, &[P, S, heads], "which heads are held, where");
    let held_z = g.input(HookPoint::HeldZ, &[P, S, width], "the z that held heads keep");
    let by_head = [0, 0, a.heads as i64, a.d_head as i64];
    let z = reshape(g, z, &by_head, "z_by_head");
    let held_z = reshape(g, &held_z, &by_head, "held_z_by_head");
    let axis = g.int_constant("axis_of_held", &[3]);
    let held = g.node("Unsqueeze", &[&held, &axis], "held_by_head", vec![]);
    let chosen = g.node("Where", &[&held, &held_z, &z], "z_chosen", vec![]);
    reshape(g, &chosen, &[0, 0, (a.heads * a.d_head) as i64], &HookPoint::HookZ.name())
}

/// resid_mid [B, S, D] → resid_post, and the MLP's dot product with `u`. In a parallel block the MLP
/// reads the stream before attention, which is then an input of its own.
pub fn mlp(a: &Architecture, layer: usize, w: &StoredLayer, weights: &str, variant: Variant) -> GraphBuilder {
    let d = Dim::Size(a.d_model);
    let doc = format!("MLP of block {layer}, with its dot product with a direction.");
    let is_held = variant == Variant::Held;
    let name = match variant {
        Variant::Held => super::mlp_held_graph(layer),
        Variant::AfterHead => super::mlp_after_head_graph(layer),
        _ => super::mlp_graph(layer),
    };
    let mut g = GraphBuilder::new(&name, Role::Projections, &doc, weights);
    let mid = g.input(HookPoint::ResidMid, &[B, S, d], "the stream with this block's attention added");
    let u = g.input(HookPoint::U, &[P, S, d], "the direction γ ⊙ Ŵ[target]");
    let stream = match a.parallel {
        true => g.input(HookPoint::ResidPre, &[B, S, d], "the stream before this block"),
        false => mid.clone(),
    };
    let mlp_out = HookPoint::MlpOut.name();
    let free = if is_held { "mlp_out_not_held" } else { &mlp_out };
    let linear = if w.write_norms.is_some() { "mlp_linear" } else { free };
    let mut written = match &w.mlp {
        StoredMlps::Dense(mlp) => {
            let read = match variant {
                Variant::AfterHead => Reading::after_head(&mut g, a, &stream),
                _ => Reading::of(&mut g, a, &stream, &w.mlp_norm),
            };
            dense(&mut g, a, mlp, &read, linear)
        }
        StoredMlps::Experts(of) => {
            let normed = normed(&mut g, a, &stream, &w.mlp_norm, "normed");
            experts::mixture(&mut g, a, of, [&normed, &u], linear)
        }
    };
    if let Some((_, gamma)) = &w.write_norms {
        written = norm_written(&mut g, a, &written, gamma, free, HookPoint::MlpWriteScale);
    }
    if is_held {
        let held = g.bool_input(HookPoint::Held, &[P, S], "where the MLP is held");
        let held_output = g.input(HookPoint::HeldMlpOut, &[P, S, d], "the output it then keeps");
        let axis = g.int_constant("axis_of_held", &[2]);
        let held = g.node("Unsqueeze", &[&held, &axis], "held_rows", vec![]);
        written = g.node("Where", &[&held, &held_output, &written], &mlp_out, vec![]);
    }
    g.node("Add", &[&mid, &written], &HookPoint::ResidPost.name(), vec![]);
    let products = g.node("Mul", &[&written, &u], "mlp_out_times_u", vec![]);
    sum_last(&mut g, &products, &HookPoint::MlpEffect.name(), 2);
    g.output(HookPoint::ResidPost, &[B, S, d], "the stream after this block");
    g.output(HookPoint::MlpEffect, &[B, S], "the MLP's output · u");
    g.output(HookPoint::MlpOut, &[B, S, d], "what the MLP adds to the stream, its bias included");
    g
}

/// The neurons of the one MLP, and what they write.
fn dense(g: &mut GraphBuilder, a: &Architecture, w: &StoredMlp, read: &Reading, name: &str) -> String {
    let hidden = read.project(g, Projection::In, &w.w_in, &w.b_in);
    let post = match (&w.w_gate, &w.xielu) {
        (_, Some(of)) => xielu(g, of, &hidden, &HookPoint::MlpPost.name()),
        (Some(w_gate), _) => {
            let gate = read.project(g, Projection::Gate, w_gate, &w.b_gate);
            let gate = activate(g, a.activation, &gate, "gate_activated");
            g.node("Mul", &[&gate, &hidden], &HookPoint::MlpPost.name(), vec![])
        }
        (None, _) if a.solu => solu(g, a, &hidden, &HookPoint::MlpPost.name()),
        (None, _) => activate(g, a.activation, &hidden, &HookPoint::MlpPost.name()),
    };
    g.output(HookPoint::MlpPost, &[B, S, Dim::Size(a.d_mlp)], "the neurons' activations, before W_out");
    project(g, &post, &w.w_out, &w.b_out, name)
}

/// u → v = W_O u: a head's z times its v is its effect. Where what attention writes is normed, v = W_O (γ_post ⊙ u), still
/// to be divided by that norm's clean scale.
pub fn head_directions(a: &Architecture, layer: usize, w: &StoredLayer, weights: &str) -> GraphBuilder {
    let width = a.heads * a.d_head;
    let doc = format!("The direction of each target in z of block {layer}.");
    let mut g = GraphBuilder::new(&super::head_directions_graph(layer), Role::Exact, &doc, weights);
    let u = g.input(HookPoint::U, &[P, S, Dim::Size(a.d_model)], "the direction γ ⊙ Ŵ[target]");
    let scaled = scaled_by(&mut g, &u, w.write_norms.as_ref().map(|(of_attention, _)| of_attention), "u_before_norm");
    let rows = reshape(&mut g, &scaled, &[-1, a.d_model as i64], "u_rows");
    let w_o = g.weight(&w.w_o);
    let v = g.node("Gemm", &[&rows, &w_o], "v_rows", vec![int("transB", 1)]);
    with_lead_of(&mut g, &u, &v, width, &HookPoint::V.name());
    g.output(HookPoint::V, &[P, S, Dim::Size(width)], "W_O u of the heads");
    g
}

/// u → w = W_out u: a neuron's activation times its w is its effect. Where what the MLP writes is normed,
/// w = W_out (γ_post ⊙ u), still to be divided by that norm's clean scale.
pub fn neuron_directions(a: &Architecture, layer: usize, w: &StoredLayer, weights: &str) -> GraphBuilder {
    let doc = format!("The direction of each target in the neurons of block {layer}.");
    let mut g = GraphBuilder::new(&super::neuron_directions_graph(layer), Role::Exact, &doc, weights);
    let u = g.input(HookPoint::U, &[P, S, Dim::Size(a.d_model)], "the direction γ ⊙ Ŵ[target]");
    let u = scaled_by(&mut g, &u, w.write_norms.as_ref().map(|(_, of_mlp)| of_mlp), "u_before_norm");
    let rows = reshape(&mut g, &u, &[-1, a.d_model as i64], "u_rows");
    let mut parts = Vec::new();
    for (e, w_out) in w.mlp.outputs().into_iter().enumerate() {
        let w_out = g.weight(w_out);
        parts.push(g.node("Gemm", &[&rows, &w_out], &format!("w_rows_{e}"), vec![int("transB", 1)]));
    }
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let of_rows = g.node("Concat", &parts, "w_rows", vec![int("axis", 1)]);
    with_lead_of(&mut g, &u, &of_rows, a.d_mlp, &HookPoint::W.name());
    g.output(HookPoint::W, &[P, S, Dim::Size(a.d_mlp)], "W_out u of every neuron");
    g
}

/// z [B, S, H·d_head] → what each head writes to the stream, [B, S, H, D]; by the given scale of the norm on what
/// attention writes, if there is one.
pub fn head_outputs(a: &Architecture, layer: usize, w: &StoredLayer, weights: &str) -> GraphBuilder {
    let (heads, d_head, d) = (a.heads, a.d_head, a.d_model);
    let doc = format!("What each head of block {layer} writes to the stream.");
    let mut g = GraphBuilder::new(&super::head_outputs_graph(layer), Role::Exact, &doc, weights);
    let z = g.input(HookPoint::HookZ, &[B, S, Dim::Size(heads * d_head)], "each head's mixed values, before W_O");
    let z = reshape(&mut g, &z, &[0, 0, heads as i64, d_head as i64], "z_by_head");
    let z = g.node("Transpose", &[&z], "z_heads_first", vec![ints("perm", &[0, 2, 1, 3])]);
    let w_o = g.weight(&w.w_o.reshaped(&[heads, d_head, d]));
    let written = g.node("MatMul", &[&z, &w_o], "written_heads_first", vec![]);
    let outputs = HookPoint::HeadOutputs.name();
    let linear = if w.write_norms.is_some() { "outputs_before_norm" } else { &outputs };
    g.node("Transpose", &[&written], linear, vec![ints("perm", &[0, 2, 1, 3])]);
    if let Some((gamma, _)) = &w.write_norms {
        let scale = g.input(HookPoint::AttnWriteScale, &[B, S], "the scale of the norm on what attention writes");
        let axes = g.int_constant("axes_of_scale", &[2, 3]);
        let scale = g.node("Unsqueeze", &[&scale, &axes], "scale_by_head", vec![]);
        let shares = g.node("Div", &[linear, &scale], "outputs_scaled", vec![]);
        let gamma = g.weight(gamma);
        g.node("Mul", &[&shares, &gamma], &outputs, vec![]);
    }
    g.output(HookPoint::HeadOutputs, &[B, S, Dim::Size(heads), Dim::Size(d)], "z_h W_O^h of every head");
    g
}

/// The stream with one head's z changed: residual + Δz W_O of the head each run names.
pub fn ablate(a: &Architecture, layer: usize, w: &StoredLayer, weights: &str) -> GraphBuilder {
    let d = Dim::Size(a.d_model);
    let doc = "The stream with one head's z changed.";
    let mut g = GraphBuilder::new(&super::ablate_graph(layer), Role::Exact, doc, weights);
    let residual =
        g.input(HookPoint::Resid, &[P, S, d], "the clean stream after attention (or after a parallel block)");
    let delta = g.input(HookPoint::ZChange, &[B, S, Dim::Size(a.d_head)], "replacement z less clean z");
    let head = g.int_input(HookPoint::Head, &[B], "which head");
    let w_o = g.weight(&w.w_o.reshaped(&[a.heads, a.d_head, a.d_model]));
    let chosen = g.node("Gather", &[&w_o, &head], "W_O_of_head", vec![]);
    let change = g.node("MatMul", &[&delta, &chosen], "change", vec![]);
    g.node("Add", &[&residual, &change], &HookPoint::Ablated.name(), vec![]);
    g.output(HookPoint::Ablated, &[B, S, d], "the ablated stream");
    g
}

/// As [`ablate`], where what attention writes is normed: the change goes through that norm, with all that the other heads
/// write. A projection adds a multiple of γ_post ⊙ u before the norm.
pub fn ablate_before_norm(
    a: &Architecture,
    layer: usize,
    w: &StoredLayer,
    gamma: &Stored,
    weights: &str,
) -> GraphBuilder {
    let d = Dim::Size(a.d_model);
    let doc = "The stream with one head's z changed, through the norm on what attention writes.";
    let mut g = GraphBuilder::new(&super::ablate_graph(layer), Role::Exact, doc, weights);
    let mid = g.input(HookPoint::ResidMid, &[P, S, d], "the clean stream after attention");
    let clean = g.input(HookPoint::AttnOut, &[P, S, d], "what attention wrote in the clean run");
    let residual = g.node("Sub", &[&mid, &clean], "resid_pre", vec![]);
    let linear = g.input(HookPoint::AttnLinear, &[P, S, d], "what attention gave in the clean run, before its norm");
    let delta = g.input(HookPoint::ZChange, &[B, S, Dim::Size(a.d_head)], "replacement z less clean z");
    let head = g.int_input(HookPoint::Head, &[B], "which head");
    let u = g.input(HookPoint::U, &[P, S, d], "the direction γ ⊙ Ŵ[target]");
    let along = g.input(HookPoint::Along, &[B, S], "the dot product with γ_post ⊙ u that is added along it");
    let w_o = g.weight(&w.w_o.reshaped(&[a.heads, a.d_head, a.d_model]));
    let chosen = g.node("Gather", &[&w_o, &head], "W_O_of_head", vec![]);
    let change = g.node("MatMul", &[&delta, &chosen], "change", vec![]);
    let changed = g.node("Add", &[&linear, &change], "linear_changed", vec![]);

    let direction = scaled_by(&mut g, &u, Some(gamma), "u_before_norm");
    let squares = g.node("Mul", &[&direction, &direction], "u_squares", vec![]);
    let axis = g.int_constant("axis_of_u", &[2]);
    let squared = g.node("ReduceSum", &[&squares, &axis], "u_squared", vec![int("keepdims", 1)]);
    // A position without a target has no direction, and nothing is added along it.
    let least = g.constant("least", &[], &[f32::MIN_POSITIVE]);
    let squared = g.node("Max", &[&squared, &least], "u_squared_positive", vec![]);
    let along = g.node("Unsqueeze", &[&along, &axis], "along_column", vec![]);
    let multiple = g.node("Div", &[&along, &squared], "multiple_of_u", vec![]);
    let added = g.node("Mul", &[&direction, &multiple], "added_along_u", vec![]);
    let linear = g.node("Add", &[&changed, &added], "linear_ablated", vec![]);

    let written = norm_written(&mut g, a, &linear, gamma, "attn_out_ablated", HookPoint::AttnWriteScale);
    g.node("Add", &[&residual, &written], &HookPoint::Ablated.name(), vec![]);
    g.output(HookPoint::Ablated, &[B, S, d], "the ablated stream");
    g
}

/// γ ⊙ x / scale, where scale = √(mean x² + ε) is an output of its own.
fn norm_written(
    g: &mut GraphBuilder,
    a: &Architecture,
    x: &str,
    gamma: &Stored,
    name: &str,
    scale: HookPoint,
) -> String {
    let written = norm(g, a, x, gamma, name);
    let column = norm_scale(g, a, x, &format!("{}_column", scale.name()));
    let axis = g.int_constant(&format!("axis_of_{}", scale.name()), &[2]);
    g.node("Squeeze", &[&column, &axis], &scale.name(), vec![]);
    g.output(scale, &[B, S], "√(mean square + ε) of what is normed before it is written");
    written
}

/// γ ⊙ x, or x without a γ.
pub fn scaled_by(g: &mut GraphBuilder, x: &str, gamma: Option<&Stored>, name: &str) -> String {
    let Some(gamma) = gamma else { return x.to_string() };
    let gamma = g.weight(gamma);
    g.node("Mul", &[x, &gamma], name, vec![])
}

/// x W + b.
pub fn project(g: &mut GraphBuilder, x: &str, w: &Stored, b: &Option<Stored>, name: &str) -> String {
    let w = g.weight(w);
    match b {
        None => g.node("MatMul", &[x, &w], name, vec![]),
        Some(b) => {
            let product = g.node("MatMul", &[x, &w], &format!("{name}_product"), vec![]);
            let b = g.weight(b);
            g.node("Add", &[&product, &b], name, vec![])
        }
    }
}

/// The architecture's norm with γ; β is folded into the biases behind it.
pub fn norm(g: &mut GraphBuilder, a: &Architecture, x: &str, gamma: &Stored, name: &str) -> String {
    let op = match a.norm {
        Norm::Rms => "RMSNormalization",
        Norm::Layer => "LayerNormalization",
    };
    let gamma = g.weight(gamma);
    g.node(op, &[x, &gamma], name, vec![float("epsilon", a.norm_eps), int("axis", -1)])
}

/// RMS norm of queries or keys, each head on its own or all together: [B, S, heads · d_head] to the same shape.
fn norm_heads(g: &mut GraphBuilder, a: &Architecture, x: &str, gamma: &Stored, name: &str, heads: usize) -> String {
    let (heads, d_head) = (heads as i64, a.d_head as i64);
    let gamma = g.weight(gamma);
    let attributes = vec![float("epsilon", a.norm_eps), int("axis", -1)];
    if a.qk_norm == Some(QkNorm::Whole) {
        return g.node("RMSNormalization", &[x, &gamma], name, attributes);
    }
    let split = reshape(g, x, &[0, 0, heads, d_head], &format!("{name}_split"));
    let normed = g.node("RMSNormalization", &[&split, &gamma], &format!("{name}_by_head"), attributes);
    reshape(g, &normed, &[0, 0, heads * d_head], name)
}

pub fn activate(g: &mut GraphBuilder, activation: Activation, x: &str, name: &str) -> String {
    match activation {
        // x · sigmoid(x): ONNX Runtime fuses the pair into one pass.
        Activation::Silu => {
            let sigmoid = g.node("Sigmoid", &[x], &format!("{name}_sigmoid"), vec![]);
            g.node("Mul", &[x, &sigmoid], name, vec![])
        }
        Activation::Gelu => g.node("Gelu", &[x], name, vec![string("approximate", "none")]),
        Activation::GeluTanh => g.node("Gelu", &[x], name, vec![string("approximate", "tanh")]),
        Activation::Relu => g.node("Relu", &[x], name, vec![]),
        Activation::ReluSquared => {
            let relu = g.node("Relu", &[x], &format!("{name}_relu"), vec![]);
            g.node("Mul", &[&relu, &relu], name, vec![])
        }
    }
}

fn xielu(g: &mut GraphBuilder, of: &Xielu, x: &str, name: &str) -> String {
    let n = |what: &str| format!("{name}_{what}");
    let [alpha_p, alpha_n, beta, epsilon, zero, one, half] = [
        ("alpha_p", of.alpha_p),
        ("alpha_n", of.alpha_n),
        ("beta", of.beta),
        ("epsilon", of.epsilon),
        ("zero", 0.0),
        ("one", 1.0),
        ("half", 0.5),
    ]
    .map(|(what, value)| g.constant(&n(what), &[], &[value]));
    let square = g.node("Mul", &[x, x], &n("square"), vec![]);
    let above = g.node("Mul", &[&square, &alpha_p], &n("above"), vec![]);
    let bounded = g.node("Min", &[x, &epsilon], &n("bounded"), vec![]);
    // exp(x) − 1 = 2 t / (1 − t), where t = tanh(x / 2), keeps the digits of a small x.
    let half = g.node("Mul", &[&bounded, &half], &n("half_of_x"), vec![]);
    let tanh = g.node("Tanh", &[&half], &n("tanh"), vec![]);
    let twice = g.node("Add", &[&tanh, &tanh], &n("tanh_twice"), vec![]);
    let rest = g.node("Sub", &[&one, &tanh], &n("tanh_rest"), vec![]);
    let exp_less_1 = g.node("Div", &[&twice, &rest], &n("expm1"), vec![]);
    let less_x = g.node("Sub", &[&exp_less_1, x], &n("expm1_less_x"), vec![]);
    let below = g.node("Mul", &[&less_x, &alpha_n], &n("below"), vec![]);
    let is_above = g.node("Greater", &[x, &zero], &n("is_above"), vec![]);
    let either = g.node("Where", &[&is_above, &above, &below], &n("either"), vec![]);
    let linear = g.node("Mul", &[x, &beta], &n("linear"), vec![]);
    g.node("Add", &[&either, &linear], name, vec![])
}

/// The layer norm of x · softmax(x); its γ and β are part of W_out and its bias.
fn solu(g: &mut GraphBuilder, a: &Architecture, x: &str, name: &str) -> String {
    let softmax = g.node("Softmax", &[x], &format!("{name}_softmax"), vec![int("axis", -1)]);
    let product = g.node("Mul", &[x, &softmax], &format!("{name}_solu"), vec![]);
    let ones = g.constant("solu_gamma", &[a.d_mlp], &vec![1.0; a.d_mlp]);
    g.node("LayerNormalization", &[&product, &ones], name, vec![float("epsilon", a.norm_eps), int("axis", -1)])
}

pub fn reshape(g: &mut GraphBuilder, x: &str, shape: &[i64], name: &str) -> String {
    let shape = g.int_constant(&format!("shape_of_{name}"), shape);
    g.node("Reshape", &[x, &shape], name, vec![])
}

/// Rows [N, columns] as [.., columns], where the first two dimensions are those of `like`.
pub fn with_lead_of(g: &mut GraphBuilder, like: &str, rows: &str, columns: usize, name: &str) -> String {
    let lead = g.node("Shape", &[like], &format!("lead_of_{name}"), vec![int("start", 0), int("end", 2)]);
    let last = g.int_constant(&format!("last_of_{name}"), &[columns as i64]);
    let shape = g.node("Concat", &[&lead, &last], &format!("shape_of_{name}"), vec![int("axis", 0)]);
    g.node("Reshape", &[rows, &shape], name, vec![])
}

/// Sum over the last axis, which is `axis`.
pub fn sum_last(g: &mut GraphBuilder, x: &str, name: &str, axis: i64) -> String {
    let axes = g.int_constant(&format!("axis_of_{name}"), &[axis]);
    g.node("ReduceSum", &[x, &axes], name, vec![int("keepdims", 0)])
}

/// cos and sin of position · frequency, [prompt_len, pairs], from float64 angles, times the attention factor.
fn rotary_tables(g: &mut GraphBuilder, rotary: &Rotary, prompt_len: usize) -> (String, String) {
    let (frequencies, attention_factor) = (&rotary.inverse_frequencies, rotary.attention_factor);
    let pairs = frequencies.len();
    let table = |f: fn(f64) -> f64| -> Vec<f32> {
        let value = |i: usize| f((i / pairs) as f64 * frequencies[i % pairs]) * attention_factor;
        (0..prompt_len * pairs).map(|i| value(i) as f32).collect()
    };
    let cos = g.constant("cos", &[prompt_len, pairs], &table(f64::cos));
    let sin = g.constant("sin", &[prompt_len, pairs], &table(f64::sin));
    (cos, sin)
}
