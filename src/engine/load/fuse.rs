//! Replaces chains of standard operators by custom ones (`crate::operators`) on a CPU, when a graph is loaded. The
//! files do not change.

use std::collections::{BTreeMap, BTreeSet};

use crate::export::onnx::{AttributeProto, GraphProto, NodeProto, OperatorSetIdProto, float, int, string};
use crate::hooks::HookPoint;
use selfrepair_model::Activation;

pub const OWN_DOMAIN: &str = "pipeline";
pub const ATTENTION: &str = "CausalAttention";
pub const HEAD_EFFECTS: &str = "HeadEffects";
pub const ACTIVATION: &str = "Activation";
pub const ADDITION: &str = "Addition";
pub const NORM: &str = "Norm";
pub const NORM_SCALE: &str = "NormScale";
pub const READ_BY_DIFFERENCE: &str = "ReadByDifference";

const ACTIVATIONS: [(&str, Activation); 5] = [
    ("silu", Activation::Silu),
    ("gelu", Activation::Gelu),
    ("gelu_tanh", Activation::GeluTanh),
    ("relu", Activation::Relu),
    ("relu2", Activation::ReluSquared),
];

/// By the name that the attribute of an [`ACTIVATION`] node has.
pub fn activation_named(name: &str) -> Option<Activation> {
    ACTIVATIONS.iter().find(|(n, _)| *n == name).map(|(_, activation)| *activation)
}

/// What a model says that has operators of our own.
pub fn domain() -> OperatorSetIdProto {
    OperatorSetIdProto { domain: OWN_DOMAIN.into(), version: 1 }
}

/// Outputs that a fused graph gives without the bias that belongs to them, and those biases.
pub type Unbiased = BTreeMap<String, String>;

/// Fuses what can be.
pub fn fuse(graph: &mut GraphProto) -> Unbiased {
    // None of them, if the graph has another form.
    fuse_attention(graph);
    fuse_activation(graph);
    let unbiased =
        [HookPoint::ResidMid, HookPoint::ResidPost].into_iter().filter_map(|sum| fuse_addition(graph, sum)).collect();
    graph.node.iter_mut().for_each(replace_norm);
    let roots = graph.node.iter().filter(|n| n.op_type == "Sqrt").map(|n| n.output[0].clone());
    for root in roots.collect::<Vec<_>>() {
        fuse_norm_scale(graph, &root);
    }
    while fuse_read(graph).is_some() {}
    unbiased
}

/// A norm over the last axis without a bias.
fn replace_norm(node: &mut NodeProto) {
    let is_centred = match node.op_type.as_str() {
        "RMSNormalization" => 0,
        "LayerNormalization" => 1,
        _ => return,
    };
    let is_last = |a: &AttributeProto| a.name == "axis" && a.i == Some(-1);
    let epsilon = node.attribute.iter().find(|a| a.name == "epsilon");
    if let ([x, gamma], Some(epsilon), true) = (&node.input[..], epsilon, node.attribute.iter().any(is_last)) {
        let attributes = vec![epsilon.clone(), int("is_centred", is_centred)];
        *node = own(NORM, &[x, gamma], &[&node.output[0]], attributes);
    }
}

/// √(mean x² + ε), of what the first readers of a head measure.
fn fuse_norm_scale(graph: &mut GraphProto, scale: &str) -> Option<()> {
    let root = graph.writes(scale, "Sqrt")?;
    let sum = graph.writes(&root.input[0], "Add")?;
    let mean = graph.writes(&sum.input[0], "ReduceMean")?;
    // One that keeps its axis: what follows divides the stream by it.
    mean.attribute.iter().find(|a| a.name == "keepdims" && a.i == Some(1))?;
    let squares = graph.writes(&mean.input[0], "Mul")?;
    let mut fused = vec![root, sum.clone(), mean, squares.clone()];
    let mut x = squares.input[0].clone();
    let mut is_centred = 0;
    if let Some(centred) = graph.writes(&x, "Sub") {
        fused.push(graph.writes(&centred.input[1], "ReduceMean")?);
        x = centred.input[0].clone();
        is_centred = 1;
        fused.push(centred);
    }
    let attributes = vec![float("epsilon", graph.constant(&sum.input[1])?), int("is_centred", is_centred)];
    let node = own(NORM_SCALE, &[&x], &[scale], attributes);
    graph.replace(&fused.iter().collect::<Vec<_>>(), node);
    Some(())
}

/// What a projection read of the clean stream, times the ratio of scales, and what it reads of the change.
fn fuse_read(graph: &mut GraphProto) -> Option<()> {
    let is_scaled = |n: &&NodeProto| n.op_type == "Mul" && graph.writes(&n.input[1], "Div").is_some();
    let scaled = graph.node.iter().find(is_scaled)?.clone();
    let sum = graph.node.iter().find(|n| n.op_type == "Add" && n.input[0] == scaled.output[0])?.clone();
    let node = own(READ_BY_DIFFERENCE, &[&scaled.input[0], &scaled.input[1], &sum.input[1]], &[&sum.output[0]], vec![]);
    graph.replace(&[&scaled, &sum], node);
    Some(())
}

/// Causal attention with what its queries and keys go through, and the sum by head of z ⊙ v: of the same z if nothing is
/// held, or by itself.
fn fuse_attention(graph: &mut GraphProto) -> Option<()> {
    let effects = graph.writes(&HookPoint::HeadEffects.name(), "ReduceSum")?;
    let reshaped = graph.writes(&effects.input[0], "Reshape")?;
    let products = graph.writes(&reshaped.input[0], "Mul")?;
    let [z, v] = &products.input[..] else { return None };
    let attention = graph.node.iter().find(|n| n.op_type == "Attention")?.clone();
    let of_heads = |names: &[&str]| -> Vec<AttributeProto> {
        attention.attribute.iter().filter(|a| names.contains(&a.name.as_str())).cloned().collect()
    };
    let is_causal = attention.attribute.iter().any(|a| a.name == "is_causal" && a.i == Some(1));
    let of_effects = [&products, &reshaped, &effects];
    match &attention.input[..] {
        [q, k, values] if is_causal => {
            let (rotations, [q, k], [cos, sin]) = graph.unrotated([q, k]);
            let ((q_sum, q, q_bias), (k_sum, k, k_bias)) = (graph.unbiased(&q), graph.unbiased(&k));
            let is_free = attention.output[0] == *z;
            let head_effects = HookPoint::HeadEffects.name();
            let (v, effect) = if is_free { (v.as_str(), &*head_effects) } else { ("", "") };
            let node = own(
                ATTENTION,
                &[&q, &k, values, v, &q_bias, &k_bias, &cos, &sin],
                &[&attention.output[0], effect],
                of_heads(&["q_num_heads", "kv_num_heads", "scale", "softcap"]),
            );
            graph.remove(&rotations.iter().chain(&q_sum).chain(&k_sum).collect::<Vec<_>>());
            if is_free {
                graph.replace(&[&[&attention], &of_effects[..]].concat(), node);
                return Some(());
            }
            graph.replace(&[&attention], node);
        }
        _ => {}
    }
    let fused = own(HEAD_EFFECTS, &[z, v], &[&HookPoint::HeadEffects.name()], of_heads(&["q_num_heads"]));
    graph.replace(&of_effects, fused);
    Some(())
}

/// post = activation(x), of x = product + bias, or with a gate.
fn fuse_activation(graph: &mut GraphProto) -> Option<()> {
    let name = HookPoint::MlpPost.name();
    let post = graph.node.iter().find(|n| n.output[0] == name)?.clone();
    if let Some((activation, x, mut fused)) = graph.activation(&post) {
        let (biased, x, bias) = graph.unbiased(&x);
        let node = own(ACTIVATION, &[&x, &bias, ""], &[&name], vec![string("activation", activation)]);
        fused.extend(biased);
        graph.replace(&fused.iter().collect::<Vec<_>>(), node);
        return Some(());
    }
    let [gate, up] = &post.input[..] else { return None };
    let gate = graph.node.iter().find(|n| &n.output[0] == gate)?;
    let (activation, x, mut fused) = graph.activation(gate)?;
    let node = own(ACTIVATION, &[&x, "", up], &[&name], vec![string("activation", activation)]);
    fused.push(post.clone());
    graph.replace(&fused.iter().collect::<Vec<_>>(), node);
    Some(())
}

/// A component's output: its bias, its sum with the stream, and its dot product with the direction. What it writes is asked
/// for in clean passes only, and is left without the bias (both are returned, if there is one).
fn fuse_addition(graph: &mut GraphProto, sum: HookPoint) -> Option<(String, String)> {
    let sum = graph.writes(&sum.name(), "Add")?;
    let mlp_effect = HookPoint::MlpEffect.name();
    let [stream, written] = &sum.input[..] else { return None };
    let mut fused = vec![sum.clone()];
    let (biased, product, bias) = graph.unbiased(written);
    fused.extend(biased);
    let (mut u, mut effect) = (String::new(), "");
    if let Some(reduced) = graph.writes(&mlp_effect, "ReduceSum") {
        let products = graph.writes(&reduced.input[0], "Mul").filter(|n| &n.input[0] == written)?;
        (u, effect) = (products.input[1].clone(), &*mlp_effect);
        fused.extend([products, reduced]);
    }
    let node = own(ADDITION, &[written, stream, &bias, &u], &[&sum.output[0], effect], vec![]);
    graph.replace(&fused.iter().collect::<Vec<_>>(), node);
    // The product takes the name of what it becomes with the bias; without one, it has it.
    graph.node.iter_mut().flat_map(|n| &mut n.output).find(|output| **output == product)?.clone_from(written);
    (!bias.is_empty()).then(|| (written.clone(), bias))
}

fn own(op: &str, inputs: &[&str], outputs: &[&str], attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        input: inputs.iter().map(|s| s.to_string()).collect(),
        output: outputs.iter().map(|s| s.to_string()).collect(),
        name: format!("{op}:{}", outputs[0]),
        op_type: op.into(),
        attribute,
        domain: OWN_DOMAIN.into(),
    }
}

impl GraphProto {
    /// The node with this one output, if it is of this operator.
    fn writes(&self, output: &str, op: &str) -> Option<NodeProto> {
        self.node.iter().find(|n| n.output[0] == output && n.op_type == op).cloned()
    }

    /// What queries and keys were before they were turned by their positions 0, 1, …: the nodes that do it, the two, and cos
    /// and sin.
    fn unrotated(&self, [q, k]: [&str; 2]) -> (Vec<NodeProto>, [String; 2], [String; 2]) {
        match [q, k].map(|x| self.writes(x, "RotaryEmbedding")) {
            [Some(q), Some(k)] if q.input[1..] == k.input[1..] => {
                let (before, tables) = ([&q, &k].map(|n| n.input[0].clone()), [1, 2].map(|i| q.input[i].clone()));
                (vec![q, k], before, tables)
            }
            _ => (vec![], [q.into(), k.into()], Default::default()),
        }
    }

    /// A sum's first part and the constant that is added, with the node that does it.
    fn unbiased(&self, x: &str) -> (Option<NodeProto>, String, String) {
        match self.writes(x, "Add").filter(|n| self.is_constant(&n.input[1])) {
            Some(n) => (Some(n.clone()), n.input[0].clone(), n.input[1].clone()),
            None => (None, x.into(), String::new()),
        }
    }

    pub(super) fn is_constant(&self, name: &str) -> bool {
        self.initializer.iter().any(|t| t.name == name)
    }

    /// A constant of one number.
    fn constant(&self, name: &str) -> Option<f32> {
        let constant = self.initializer.iter().find(|t| t.name == name)?;
        constant.raw_data.as_slice().try_into().ok().map(f32::from_le_bytes)
    }

    /// Whether a node computes an activation: which, of what, and the nodes that do.
    fn activation(&self, node: &NodeProto) -> Option<(&'static str, String, Vec<NodeProto>)> {
        let x = node.input[0].clone();
        match node.op_type.as_str() {
            "Relu" => Some(("relu", x, vec![node.clone()])),
            "Gelu" => {
                let is_tanh = node.attribute.iter().any(|a| a.s.as_deref() == Some(b"tanh"));
                Some((if is_tanh { "gelu_tanh" } else { "gelu" }, x, vec![node.clone()]))
            }
            "Mul" if node.input[0] == node.input[1] => {
                let relu = self.writes(&x, "Relu")?;
                Some(("relu2", relu.input[0].clone(), vec![relu, node.clone()]))
            }
            "Mul" => {
                let sigmoid = self.writes(&node.input[1], "Sigmoid").filter(|n| n.input[0] == x)?;
                Some(("silu", x, vec![sigmoid, node.clone()]))
            }
            _ => None,
        }
    }

    fn remove(&mut self, nodes: &[&NodeProto]) {
        let names: BTreeSet<&str> = nodes.iter().map(|n| n.output[0].as_str()).collect();
        self.node.retain(|n| !names.contains(n.output[0].as_str()));
    }

    /// Puts `node` where the first of `fused` was, and takes those away.
    fn replace(&mut self, fused: &[&NodeProto], node: NodeProto) {
        let names: BTreeSet<&str> = fused.iter().map(|n| n.output[0].as_str()).collect();
        let mut node = Some(node);
        for n in std::mem::take(&mut self.node) {
            match names.contains(n.output[0].as_str()) {
                true => self.node.extend(node.take()),
                false => self.node.push(n),
            }
        }
    }
}
