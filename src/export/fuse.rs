//! Exported graphs with chains of standard operators made one of our own each (`engine::operators`), for a CPU. It is
//! decided when a graph is loaded; the files stay as they are.

use std::collections::BTreeSet;

use super::onnx::{AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, int, string};
use crate::model::Activation;

pub const OWN_DOMAIN: &str = "pipeline";
pub const ATTENTION: &str = "CausalAttention";
pub const HEAD_EFFECTS: &str = "HeadEffects";
pub const ACTIVATION: &str = "Activation";
pub const ADDITION: &str = "Addition";
pub const NORM: &str = "Norm";

const ACTIVATIONS: [(&str, Activation); 4] = [
    ("silu", Activation::Silu),
    ("gelu", Activation::Gelu),
    ("gelu_tanh", Activation::GeluTanh),
    ("relu", Activation::Relu),
];

/// By the name that the attribute of an [`ACTIVATION`] node has.
pub fn activation_named(name: &str) -> Option<Activation> {
    ACTIVATIONS.iter().find(|(n, _)| *n == name).map(|(_, activation)| *activation)
}

/// Fuses what can be.
pub fn fuse(model: &mut ModelProto) {
    let Some(graph) = &mut model.graph else { return };
    // None of them, if the graph has another form.
    fuse_attention(graph);
    fuse_activation(graph);
    fuse_addition(graph, "residual_mid");
    fuse_addition(graph, "residual_post");
    graph.node.iter_mut().for_each(replace_norm);
    model.opset_import.push(OperatorSetIdProto { domain: OWN_DOMAIN.into(), version: 1 });
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

/// Causal attention, and the sum by head of z ⊙ v: of the same z if nothing is held, or by itself.
fn fuse_attention(graph: &mut GraphProto) -> Option<()> {
    let effects = graph.writes("head_effects", "ReduceSum")?;
    let reshaped = graph.writes(&effects.input[0], "Reshape")?;
    let products = graph.writes(&reshaped.input[0], "Mul")?;
    let [z, v] = &products.input[..] else { return None };
    let attention = graph.node.iter().find(|n| n.op_type == "Attention")?.clone();
    let of_heads = |names: &[&str]| -> Vec<AttributeProto> {
        attention.attribute.iter().filter(|a| names.contains(&a.name.as_str())).cloned().collect()
    };
    let is_causal = attention.attribute.iter().any(|a| a.name == "is_causal" && a.i == Some(1));
    let attributes = of_heads(&["q_num_heads", "kv_num_heads", "scale"]);
    let chain = [&products, &reshaped, &effects];
    match &attention.input[..] {
        [q, k, values] if is_causal && attention.output[0] == *z => {
            let fused = own(ATTENTION, &[q, k, values, v], &[z, "head_effects"], attributes);
            graph.replace(&[&[&attention], &chain[..]].concat(), fused);
            return Some(());
        }
        [q, k, values] if is_causal => {
            let fused = own(ATTENTION, &[q, k, values, ""], &[&attention.output[0], ""], attributes);
            graph.replace(&[&attention], fused);
        }
        _ => {}
    }
    let fused = own(HEAD_EFFECTS, &[z, v], &["head_effects"], of_heads(&["q_num_heads"]));
    graph.replace(&chain, fused);
    Some(())
}

/// post = activation(x), of x = product + bias, or with a gate.
fn fuse_activation(graph: &mut GraphProto) -> Option<()> {
    let post = graph.node.iter().find(|n| n.output[0] == "post")?.clone();
    if let Some((activation, x, mut fused)) = graph.activation(&post) {
        let biased = graph.writes(&x, "Add").filter(|n| graph.is_constant(&n.input[1]));
        let (x, bias) = biased.as_ref().map_or((x.as_str(), ""), |n| (&n.input[0], &n.input[1]));
        let node = own(ACTIVATION, &[x, bias, ""], &["post"], vec![string("activation", activation)]);
        fused.extend(biased.clone());
        graph.replace(&fused.iter().collect::<Vec<_>>(), node);
        return Some(());
    }
    let [gate, up] = &post.input[..] else { return None };
    let gate = graph.node.iter().find(|n| &n.output[0] == gate)?;
    let (activation, x, mut fused) = graph.activation(gate)?;
    let node = own(ACTIVATION, &[&x, "", up], &["post"], vec![string("activation", activation)]);
    fused.push(post.clone());
    graph.replace(&fused.iter().collect::<Vec<_>>(), node);
    Some(())
}

/// A component's output: its bias, its sum with the stream, and its dot product with the direction.
fn fuse_addition(graph: &mut GraphProto, sum: &str) -> Option<()> {
    let sum = graph.writes(sum, "Add")?;
    let [stream, written] = &sum.input[..] else { return None };
    let mut fused = vec![sum.clone()];
    let biased = graph.writes(written, "Add").filter(|n| graph.is_constant(&n.input[1]));
    let (product, bias, kept) = match &biased {
        Some(n) => (n.input[0].as_str(), n.input[1].as_str(), written.as_str()),
        None => (written.as_str(), "", ""),
    };
    fused.extend(biased.clone());
    let (mut u, mut effect) = (String::new(), "");
    if let Some(reduced) = graph.writes("mlp_effect", "ReduceSum") {
        let products = graph.writes(&reduced.input[0], "Mul").filter(|n| &n.input[0] == written)?;
        (u, effect) = (products.input[1].clone(), "mlp_effect");
        fused.extend([products, reduced]);
    }
    let node = own(ADDITION, &[product, stream, bias, &u], &[&sum.output[0], kept, effect], vec![]);
    graph.replace(&fused.iter().collect::<Vec<_>>(), node);
    Some(())
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

    fn is_constant(&self, name: &str) -> bool {
        self.initializer.iter().any(|t| t.name == name)
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
            "Mul" => {
                let sigmoid = self.writes(&node.input[1], "Sigmoid").filter(|n| n.input[0] == x)?;
                Some(("silu", x, vec![sigmoid, node.clone()]))
            }
            _ => None,
        }
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
