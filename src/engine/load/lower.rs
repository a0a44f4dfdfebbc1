//! Lowers the precision of graphs when they are loaded. The files do not change.

use std::collections::BTreeSet;

use crate::export::onnx::{FLOAT, GraphProto, NodeProto, int};
use selfrepair_core::precision::Half;

/// How a graph's projections are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lowering {
    pub to: Half,
    /// Whether products take 16-bit floats. Where the device has no such product, float32 ones take rounded
    /// numbers and their results are rounded: the same values but for the order of sums, at float32's cost.
    pub native: bool,
}

/// As onnx.proto numbers the type.
fn data_type(half: Half) -> i32 {
    match half {
        Half::Fp16 => 10,
        Half::Bf16 => 16,
    }
}

/// Lowers every product with a stored weight, and returns those weights' names.
pub fn lower(graph: &mut GraphProto, lowering: Lowering) -> BTreeSet<String> {
    let stored = graph.initializer.iter().filter(|t| !t.external_data.is_empty()).map(|t| t.name.clone());
    let stored: BTreeSet<String> = stored.collect();
    let (mut nodes, mut weights) = (Vec::new(), BTreeSet::new());
    // What several projections read is rounded once.
    let mut rounded = BTreeSet::new();
    for mut node in std::mem::take(&mut graph.node) {
        if node.op_type != "MatMul" || !stored.contains(&node.input[1]) {
            nodes.push(node);
            continue;
        }
        weights.insert(node.input[1].clone());
        let (input, output) = (node.input[0].clone(), node.output[0].clone());
        let (short, product) = (format!("{input}_rounded"), format!("{output}_exact"));
        if rounded.insert(input.clone()) {
            nodes.extend(rounding(&input, &short, lowering));
        }
        (node.input[0], node.output[0]) = (short, product.clone());
        nodes.push(node);
        nodes.extend(match lowering.native {
            true => vec![cast(&product, &output, FLOAT)],
            false => rounding(&product, &output, lowering),
        });
    }
    graph.node = nodes;
    if lowering.native {
        for tensor in graph.initializer.iter_mut().filter(|t| weights.contains(&t.name)) {
            tensor.data_type = data_type(lowering.to);
        }
    }
    weights
}

/// Nodes that convert `from` to `to`: 16-bit floats, or float32 with 16-bit rounding.
fn rounding(from: &str, to: &str, Lowering { to: half, native }: Lowering) -> Vec<NodeProto> {
    if native {
        return vec![cast(from, to, data_type(half))];
    }
    let short = format!("{to}_short");
    vec![cast(from, &short, data_type(half)), cast(&short, to, FLOAT)]
}

fn cast(from: &str, to: &str, data_type: i32) -> NodeProto {
    NodeProto {
        input: vec![from.into()],
        output: vec![to.into()],
        name: format!("Cast:{to}"),
        op_type: "Cast".into(),
        attribute: vec![int("to", i64::from(data_type))],
        ..Default::default()
    }
}
