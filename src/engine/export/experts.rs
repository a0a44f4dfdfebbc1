//! Mixtures of experts. Each expert multiplies the rows that the router sends to it and no others.
//!
//! N = B · S rows, E experts, K of them at a row, M neurons of an expert. A row has K slots, one for each expert that was
//! chosen there.

use super::graphs::{B, S, activate, project, reshape, sum_last, with_lead_of};
use super::onnx::{Dim, GraphBuilder, Stored, int, string};
use super::stored::{StoredExperts, StoredMlp};
use crate::hooks::HookPoint;
use selfrepair_model::{Architecture, ExpertWeighting, Experts};

/// Names of what the router decided.
struct Routing {
    /// The chosen experts, [N · K].
    experts: String,
    /// Their weights, [N · K].
    weights: String,
}

/// The normed stream [B, S, D] and the direction u [P, S, D] → what the experts write, [B, S, D], with their biases.
///
/// Outputs are the neurons that were computed, [B, S, K · M + shared], with the weights of their experts, and which
/// experts those of the K slots are, [B, S, K]; and what the experts' biases write along u, if there are such.
pub fn mixture(
    g: &mut GraphBuilder,
    a: &Architecture,
    w: &StoredExperts,
    [normed, u]: [&str; 2],
    name: &str,
) -> String {
    let experts = &w.experts;
    let (chosen, neurons) = (experts.chosen as i64, experts.neurons as i64);
    let rows = reshape(g, normed, &[-1, a.d_model as i64], "rows");
    let routing = route(g, w, &rows);

    let of_slots = g.node("Shape", &[&routing.experts], "slots", vec![]);
    let [one, width] = [1, neurons].map(|n| g.int_constant(&format!("length_{n}"), &[n]));
    let slots_shape = g.node("Concat", &[&of_slots, &width], "post_shape", vec![int("axis", 0)]);
    let mut post = g.node("ConstantOfShape", &[&slots_shape], "post_empty", vec![]);
    let rows_shape = g.node("Shape", &[&rows], "rows_shape", vec![]);
    let mut written = g.node("ConstantOfShape", &[&rows_shape], "written_empty", vec![]);
    let per_row = g.int_constant("slots_of_a_row", &[chosen]);
    for (e, expert) in w.weights.iter().enumerate() {
        let n = |what: &str| format!("{what}_{e}");
        // Its slots and their rows, both [n, 1].
        let number = g.int_constant(&n("expert"), &[e as i64]);
        let is_its = g.node("Equal", &[&routing.experts, &number], &n("is_its"), vec![]);
        let slots = g.node("NonZero", &[&is_its], &n("slot_row"), vec![]);
        let slots = g.node("Transpose", &[&slots], &n("slots"), vec![]);
        let its_rows = g.node("Div", &[&slots, &per_row], &n("rows"), vec![]);
        let weights = g.node("GatherND", &[&routing.weights, &slots], &n("weights"), vec![]);
        let weights = g.node("Unsqueeze", &[&weights, &one], &n("weight_column"), vec![]);
        let x = g.node("GatherND", &[&rows, &its_rows], &n("x"), vec![]);

        let of_expert = neurons_of(g, a, experts, expert, &x, &n("post"));
        let weighted = g.node("Mul", &[&of_expert, &weights], &n("post_weighted"), vec![]);
        post = g.node("ScatterND", &[&post, &slots, &weighted], &n("post_with"), vec![]);
        let of_expert = project(g, &weighted, &expert.w_out, &None, &n("written_by"));
        let add = string("reduction", "add");
        written = g.node("ScatterND", &[&written, &its_rows, &of_expert], &n("written_with"), vec![add]);
    }
    let rows_of_slots = g.int_constant("shape_of_row_posts", &[-1, chosen * neurons]);
    let mut post = g.node("Reshape", &[&post, &rows_of_slots], "post_of_row", vec![]);
    if let Some((of_shared, by_shared)) = shared(g, a, w, &rows) {
        post = g.node("Concat", &[&post, &of_shared], "post_of_all", vec![int("axis", 1)]);
        written = g.node("Add", &[&written, &by_shared], "written_by_all", vec![]);
    }

    let biases = w.output_biases.as_ref().map(|b| of_biases(g, &routing, b, chosen));
    if let Some(biases) = &biases {
        written = g.node("Add", &[&written, biases], "written_with_biases", vec![]);
    }

    let active = experts.active_neurons();
    with_lead_of(g, normed, &post, active, &HookPoint::MlpPost.name());
    with_lead_of(g, normed, &routing.experts, experts.chosen, &HookPoint::ExpertIndices.name());
    g.output(HookPoint::MlpPost, &[B, S, Dim::Size(active)], "the chosen experts' neurons, with the experts' weights");
    g.int_output(HookPoint::ExpertIndices, &[B, S, Dim::Size(experts.chosen)], "the chosen experts");
    if let Some(biases) = biases {
        let biases = with_lead_of(g, normed, &biases, a.d_model, "bias_written");
        let products = g.node("Mul", &[&biases, u], "bias_times_u", vec![]);
        sum_last(g, &products, &HookPoint::ExpertBiasEffect.name(), 2);
        g.output(HookPoint::ExpertBiasEffect, &[B, S], "what the chosen experts' biases write · u");
    }
    with_lead_of(g, normed, &written, a.d_model, name)
}

/// What the biases of the chosen experts write, with the experts' weights, [N, D].
fn of_biases(g: &mut GraphBuilder, routing: &Routing, biases: &Stored, chosen: i64) -> String {
    let biases_of_all = g.weight(biases);
    let of_slots = g.node("Gather", &[&biases_of_all, &routing.experts], "bias_of_slot", vec![]);
    let axis = g.int_constant("axis_of_slots", &[1]);
    let weights = g.node("Unsqueeze", &[&routing.weights, &axis], "weight_of_slot_column", vec![]);
    let weighted = g.node("Mul", &[&of_slots, &weights], "bias_weighted", vec![]);
    let by_row = reshape(g, &weighted, &[-1, chosen, biases.columns() as i64], "bias_by_row");
    g.node("ReduceSum", &[&by_row, &axis], "bias_of_row", vec![int("keepdims", 0)])
}

fn route(g: &mut GraphBuilder, w: &StoredExperts, rows: &str) -> Routing {
    let logits = project(g, rows, &w.router.w, &w.router.b, "router_logits");
    let k = g.int_constant("chosen", &[w.experts.chosen as i64]);
    let top = |g: &mut GraphBuilder, x: &str| {
        g.nodes("TopK", &[x, &k], &["top_values", "top_experts"], vec![int("axis", -1)]);
    };
    let softmax = |g: &mut GraphBuilder, x: &str, name: &str| g.node("Softmax", &[x], name, vec![int("axis", -1)]);
    let weights = match w.experts.weights {
        ExpertWeighting::OfChosen => {
            top(g, &logits);
            softmax(g, "top_values", "top_weights")
        }
        ExpertWeighting::OfAll => {
            let shares = softmax(g, &logits, "router_shares");
            top(g, &shares);
            "top_values".to_string()
        }
    };
    Routing {
        experts: reshape(g, "top_experts", &[-1], "expert_of_slot"),
        weights: reshape(g, &weights, &[-1], "weight_of_slot"),
    }
}

/// The neurons [n, M] of one expert, without its weight.
fn neurons_of(
    g: &mut GraphBuilder,
    a: &Architecture,
    experts: &Experts,
    expert: &StoredMlp,
    x: &str,
    name: &str,
) -> String {
    let hidden = project(g, x, &expert.w_in, &expert.b_in, &format!("{name}_in"));
    let Some(w_gate) = &expert.w_gate else { return activate(g, a.activation, &hidden, name) };
    let gate = project(g, x, w_gate, &expert.b_gate, &format!("{name}_gate"));
    let Some(clamped) = experts.clamped_gate else {
        let gate = activate(g, a.activation, &gate, &format!("{name}_gate_activated"));
        return g.node("Mul", &[&gate, &hidden], name, vec![]);
    };
    let n = |what: &str| format!("{name}_{what}");
    let [limit, least, alpha, one] =
        [("limit", clamped.limit), ("least", -clamped.limit), ("alpha", clamped.alpha), ("one", 1.0)]
            .map(|(what, value)| g.constant(&n(what), &[], &[value]));
    let gate = g.node("Min", &[&gate, &limit], &n("gate_clamped"), vec![]);
    let times_alpha = g.node("Mul", &[&gate, &alpha], &n("gate_times_alpha"), vec![]);
    let sigmoid = g.node("Sigmoid", &[&times_alpha], &n("gate_sigmoid"), vec![]);
    let gate = g.node("Mul", &[&gate, &sigmoid], &n("gate_activated"), vec![]);
    let hidden = g.node("Clip", &[&hidden, &least, &limit], &n("in_clamped"), vec![]);
    let hidden = g.node("Add", &[&hidden, &one], &n("in_shifted"), vec![]);
    g.node("Mul", &[&gate, &hidden], name, vec![])
}

/// The neurons [N, M] of the expert that every row goes through, with its weight, and what it writes [N, D].
fn shared(g: &mut GraphBuilder, a: &Architecture, w: &StoredExperts, rows: &str) -> Option<(String, String)> {
    let (expert, gate) = w.shared.as_ref()?;
    let mut post = neurons_of(g, a, &w.experts, expert, rows, "post_shared");
    if let Some(gate) = gate {
        let logit = project(g, rows, &gate.w, &gate.b, "shared_gate_logit");
        let weight = g.node("Sigmoid", &[&logit], "shared_gate", vec![]);
        post = g.node("Mul", &[&post, &weight], "post_shared_weighted", vec![]);
    }
    let written = project(g, &post, &expert.w_out, &None, "written_by_shared");
    Some((post, written))
}
