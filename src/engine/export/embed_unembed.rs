//! The graphs before and after the blocks. Shapes as in `graphs`.

use super::graphs::{B, P, S, norm, sum_last};
use super::onnx::{Dim, GraphBuilder, Role, int};
use super::stored::EndWeights;
use crate::hooks::HookPoint;
use selfrepair_model::{Architecture, Norm};

/// tokens [B, S] → resid_pre of block 0 [B, S, D].
pub fn embed(a: &Architecture, ends: &EndWeights, weights: &str) -> GraphBuilder {
    let mut g = GraphBuilder::new(
        super::EMBED,
        Role::Exact,
        "Token ids to the residual stream before the first block.",
        weights,
    );
    let tokens = g.int_input(HookPoint::Tokens, &[B, S], "token ids");
    let mut residual = g.rows_of(&ends.embedding, &tokens, "token_embedding");
    if a.embedding_scale != 1.0 {
        let scale = g.constant("embedding_scale", &[], &[a.embedding_scale]);
        residual = g.node("Mul", &[&residual, &scale], "scaled_embedding", vec![]);
    }
    if let Some(table) = &ends.positions {
        let positions = g.int_input(HookPoint::Positions, &[B, S], "0, 1, … S - 1 in every row");
        let table = g.weight(table);
        let embedded = g.node("Gather", &[&table, &positions], "position_embedding", vec![]);
        residual = g.node("Add", &[&residual, &embedded], "embedding_sum", vec![]);
    }
    g.node("Identity", &[&residual], &HookPoint::ResidPre.name(), vec![]);
    g.output(HookPoint::ResidPre, &[B, S, Dim::Size(a.d_model)], "the stream before block 0");
    g
}

/// The final norm's scale and the stream's dot product with `u`: an ablated logit without unembedding.
pub fn readout(a: &Architecture, weights: &str) -> GraphBuilder {
    let d = Dim::Size(a.d_model);
    let mut g = GraphBuilder::new(
        super::READOUT,
        Role::Exact,
        "The final norm's scale, and the stream along a direction.",
        weights,
    );
    let residual = g.input(HookPoint::Resid, &[B, S, d], "the stream after the last block");
    let u = g.input(HookPoint::U, &[P, S, d], "the direction γ ⊙ Ŵ[target]");
    let products = g.node("Mul", &[&residual, &u], "resid_times_u", vec![]);
    sum_last(&mut g, &products, &HookPoint::Dot.name(), 2);
    let centred = match a.norm {
        Norm::Rms => residual,
        Norm::Layer => {
            let mean = mean_last(&mut g, &residual, "stream_mean", true);
            g.node("Sub", &[&residual, &mean], "centred", vec![])
        }
    };
    let square = g.node("Mul", &[&centred, &centred], "square", vec![]);
    let mean = mean_last(&mut g, &square, "mean_square", false);
    let eps = g.constant("eps", &[], &[a.norm_eps]);
    let shifted = g.node("Add", &[&mean, &eps], "mean_square_eps", vec![]);
    g.node("Sqrt", &[&shifted], &HookPoint::FinalScale.name(), vec![]);
    g.output(HookPoint::Dot, &[B, S], "residual · u");
    g.output(HookPoint::FinalScale, &[B, S], "√(mean square + ε) of the stream, centred under layer norms");
    g
}

fn mean_last(g: &mut GraphBuilder, x: &str, name: &str, keep: bool) -> String {
    let axes = g.int_constant(&format!("axis_of_{name}"), &[2]);
    g.node("ReduceMean", &[x, &axes], name, vec![int("keepdims", i64::from(keep))])
}

/// The direction of each position's target, u [P, S, D]; what attention writes that no head does, along u
/// [P, S, layers]; and k [P, S], the part of the logit no component writes.
pub fn directions(a: &Architecture, ends: &EndWeights, weights: &str) -> GraphBuilder {
    let d = Dim::Size(a.d_model);
    let doc = "The direction of each target in the stream.";
    let mut g = GraphBuilder::new(super::DIRECTIONS, Role::Exact, doc, weights);
    let targets = g.int_input(HookPoint::Targets, &[P, S], "the token whose logit is measured at each position");
    let mean = g.weight(&ends.unembedding_mean);
    let gamma = g.weight(&ends.final_norm);
    let rows = g.rows_of(&ends.unembedding, &targets, "rows");
    let rows = g.node("Sub", &[&rows, &mean], "rows_less_mean", vec![]);
    match a.norm {
        Norm::Rms => g.node("Mul", &[&rows, &gamma], "u", vec![]),
        // A layer norm takes the stream's mean away; taking it from u instead is the same.
        Norm::Layer => {
            let scaled = g.node("Mul", &[&rows, &gamma], "u_not_centred", vec![]);
            let mean = mean_last(&mut g, &scaled, "u_mean", true);
            g.node("Sub", &[&scaled, &mean], "u", vec![])
        }
    };
    g.output(HookPoint::U, &[P, S, d], "γ ⊙ Ŵ[target]");
    if let Some(biases) = &ends.attention_biases {
        let biases = g.weight(biases);
        g.node("MatMul", &["u", &biases], &HookPoint::AttentionBias.name(), vec![]);
        g.output(HookPoint::AttentionBias, &[P, S, Dim::Size(a.layers)], "b_O' · u of every layer");
    }
    constant(&mut g, ends, &targets, &rows);
    g
}

/// k = β · Ŵ\[t\] + b̂_U[t], an output if the model has either.
fn constant(g: &mut GraphBuilder, ends: &EndWeights, targets: &str, rows: &str) {
    let from_norm = ends.final_norm_beta.as_ref().map(|beta| {
        let beta = g.weight(beta);
        let products = g.node("Mul", &[rows, &beta], "rows_times_beta", vec![]);
        sum_last(g, &products, "constant_of_norm", 2)
    });
    let from_bias = ends.unembedding_bias.as_ref().map(|bias| {
        let bias = g.weight(bias);
        let own = g.node("Gather", &[&bias, targets], "own_bias", vec![]);
        let mean = g.constant("b_U_mean", &[], &[ends.unembedding_bias_mean]);
        g.node("Sub", &[&own, &mean], "constant_of_bias", vec![])
    });
    match (from_norm, from_bias) {
        (Some(a), Some(b)) => g.node("Add", &[&a, &b], "constant", vec![]),
        (Some(one), None) | (None, Some(one)) => g.node("Identity", &[&one], "constant", vec![]),
        (None, None) => return,
    };
    g.output(HookPoint::Constant, &[P, S], "k, the part of the logit that no component writes");
}

/// The stream after the last block to the model's logits, [B·S, vocab].
fn logits(g: &mut GraphBuilder, a: &Architecture, ends: &EndWeights, residual: &str, name: &str) -> String {
    let mut normed = norm(g, a, residual, &ends.final_norm, &format!("{name}_normed"));
    if let Some(beta) = &ends.final_norm_beta {
        let beta = g.weight(beta);
        normed = g.node("Add", &[&normed, &beta], &format!("{name}_normed_shifted"), vec![]);
    }
    let rows_shape = g.int_constant(&format!("{name}_rows_shape"), &[-1, a.d_model as i64]);
    let rows = g.node("Reshape", &[&normed, &rows_shape], &format!("{name}_rows"), vec![]);
    let w_u = g.weight(&ends.unembedding);
    let bias = ends.unembedding_bias.as_ref().map(|bias| g.weight(bias));
    let inputs: Vec<&str> = [rows.as_str(), &w_u].into_iter().chain(bias.as_deref()).collect();
    let Some(cap) = a.logit_softcap else { return g.node("Gemm", &inputs, name, vec![int("transB", 1)]) };
    let before = g.node("Gemm", &inputs, &format!("{name}_before_softcap"), vec![int("transB", 1)]);
    let cap = g.constant(&format!("softcap_of_{name}"), &[], &[cap]);
    let share = g.node("Div", &[&before, &cap], &format!("{name}_over_softcap"), vec![]);
    let bounded = g.node("Tanh", &[&share], &format!("{name}_bounded"), vec![]);
    g.node("Mul", &[&bounded, &cap], name, vec![])
}

/// The targets' entries of some logits [B·S, vocab] less log Σ exp, [B·S, 1]; and that log Σ exp.
fn log_prob(g: &mut GraphBuilder, logits: &str, targets: &str) -> String {
    let axes = g.int_constant("vocab_axis", &[1]);
    let total = g.node("ReduceLogSumExp", &[logits, &axes], "log_sum_exp", vec![int("keepdims", 1)]);
    let column = g.int_constant("column_shape", &[-1, 1]);
    let targets = g.node("Reshape", &[targets, &column], "target_column", vec![]);
    let own = g.node("GatherElements", &[logits, &targets], "target_logit", vec![int("axis", 1)]);
    g.node("Sub", &[&own, &total], "log_prob", vec![]);
    g.output(HookPoint::LogProb, &[Dim::Name("B·S"), Dim::Size(1)], "log-probability of the target, natural logarithm");
    total
}

/// The whole distribution, for the clean pass: logits [B·S, vocab] and the target's log-probability.
pub fn unembed(a: &Architecture, ends: &EndWeights, weights: &str) -> GraphBuilder {
    let mut g = GraphBuilder::new(super::UNEMBED, Role::Exact, "The stream after the last block to logits.", weights);
    let residual = g.input(HookPoint::Resid, &[B, S, Dim::Size(a.d_model)], "the stream after the last block");
    let targets = g.int_input(HookPoint::Targets, &[B, S], "the token whose log-probability is wanted");
    let logits = logits(&mut g, a, ends, &residual, "logits");
    log_prob(&mut g, &logits, &targets);
    g.output(HookPoint::Logits, &[Dim::Name("B·S"), Dim::Size(a.vocab)], "the model's logits");
    g
}

/// How an ablated stream's distribution differs from the clean one's.
pub fn divergence(a: &Architecture, ends: &EndWeights, weights: &str) -> GraphBuilder {
    let d = Dim::Size(a.d_model);
    let mut g = GraphBuilder::new(super::DIVERGENCE, Role::Exact, "Two streams' distributions compared.", weights);
    let residual = g.input(HookPoint::Resid, &[B, S, d], "the ablated stream after the last block");
    let clean = g.input(HookPoint::CleanResid, &[B, S, d], "the clean stream after the last block");
    let targets = g.int_input(HookPoint::Targets, &[B, S], "the token whose log-probability is wanted");
    let ablated = logits(&mut g, a, ends, &residual, "logits");
    let clean = logits(&mut g, a, ends, &clean, "clean_logits");
    let total = log_prob(&mut g, &ablated, &targets);
    let q = g.node("Sub", &[&ablated, &total], "log_q", vec![]);
    let p = g.node("LogSoftmax", &[&clean], "log_p", vec![int("axis", 1)]);
    let weight = g.node("Exp", &[&p], "p", vec![]);
    let ratio = g.node("Sub", &[&p, &q], "log_ratio", vec![]);
    let terms = g.node("Mul", &[&weight, &ratio], "terms", vec![]);
    sum_last(&mut g, &terms, "kl", 1);
    g.output(HookPoint::Kl, &[Dim::Name("B·S")], "Σ p (log p − log q), p clean and q ablated");
    g
}
