//! Pads rows to avoid 4K aliasing. Rows that are a multiple of 4096 bytes apart compete for the same sets of the L1
//! cache. A matrix product reads a dozen of them at once, and takes up to a fifth longer (`docs/performance-log.md`).
//! So the outputs of custom operators that feed such products get one cache line of zeros after each row, and the
//! products' weights get matching rows of zeros.

use std::collections::BTreeSet;

use super::fuse::{ACTIVATION, ATTENTION, NORM, OWN_DOMAIN};
use crate::export::onnx::{Dimension, GraphProto, NodeProto, ValueInfoProto, int};

/// Zeros behind a row: 64 bytes.
pub const PADDING: usize = 16;

/// Rows of a multiple of so many numbers are padded: 4096 bytes.
pub const ALIASED: usize = 1024;

/// What was padded in a graph.
#[derive(Default)]
pub struct Padded {
    /// Weights, [columns + PADDING, ..] instead of [columns, ..].
    pub weights: BTreeSet<String>,
    /// Outputs, [.., columns + PADDING] instead of [.., columns].
    pub outputs: BTreeSet<String>,
}

/// Pads rows of a multiple of `aliased` numbers that are written by an operator that can and read by products only.
pub fn pad(graph: &mut GraphProto, aliased: usize) -> Padded {
    let mut padded = Padded::default();
    for i in 0..graph.node.len() {
        let node = &graph.node[i];
        if node.domain != OWN_DOMAIN || ![ATTENTION, ACTIVATION, NORM].contains(&node.op_type.as_str()) {
            continue;
        }
        let written = node.output[0].clone();
        let Some(weights) = graph.weights_that_read(&written, aliased) else { continue };
        graph.node[i].attribute.push(int("padding", PADDING as i64));
        if let Some(output) = graph.output.iter_mut().find(|output| output.name == written) {
            widen(output);
            padded.outputs.insert(written);
        }
        for weight in graph.initializer.iter_mut().filter(|t| weights.contains(&t.name)) {
            if padded.weights.insert(weight.name.clone()) {
                weight.dims[0] += PADDING as i64;
            }
        }
    }
    padded
}

impl GraphProto {
    /// The stored weights of the products that read `x`, if they are to be padded and nothing else reads it.
    fn weights_that_read(&self, x: &str, aliased: usize) -> Option<BTreeSet<String>> {
        let readers = self.node.iter().filter(|n| n.input.iter().any(|input| input == x));
        let weights: BTreeSet<String> = readers.map(|n| self.weight_to_pad(n, x, aliased)).collect::<Option<_>>()?;
        (!weights.is_empty()).then_some(weights)
    }

    fn weight_to_pad(&self, product: &NodeProto, x: &str, aliased: usize) -> Option<String> {
        let is_product = product.op_type == "MatMul" && product.input[0] == x && product.input[1] != x;
        let weight = self.initializer.iter().find(|t| is_product && t.name == product.input[1])?;
        // Another product of the same weight would read rows without zeros.
        let readers = self.node.iter().flat_map(|n| &n.input).filter(|input| **input == weight.name);
        if readers.count() > 1 {
            return None;
        }
        let [rows, _] = weight.dims[..] else { return None };
        let is_aliased = !weight.external_data.is_empty() && (rows as usize).is_multiple_of(aliased);
        is_aliased.then(|| weight.name.clone())
    }
}

fn widen(output: &mut ValueInfoProto) {
    let shape = output.r#type.as_mut().and_then(|t| t.tensor_type.as_mut()).and_then(|t| t.shape.as_mut());
    if let Some(Dimension::Value(columns)) = shape.and_then(|s| s.dim.last_mut()).and_then(|d| d.value.as_mut()) {
        *columns += PADDING as i64;
    }
}

#[cfg(test)]
mod tests {
    use super::super::prepared;
    use super::*;
    use crate::export::{attention_graph, export, mlp_graph};
    use selfrepair_core::config::ModelConfig;
    use selfrepair_model::{Model, ModelSource};

    #[test]
    fn rows_that_products_read_are_padded() {
        let config = ModelConfig {
            source: concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/tiny-llama").into(),
            ..Default::default()
        };
        let model = Model::open(ModelSource::resolve(&config).unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        export(&model, 16, folder.path()).unwrap();
        let padded = |graph: String, aliased| {
            let prepared = prepared(&folder.path().join(format!("{graph}.onnx")), None, aliased).unwrap();
            let weights = prepared.weights.into_iter().filter(|w| w.is_padded).map(|w| w.stored.name);
            (weights.collect::<Vec<_>>(), prepared.padded.into_iter().collect::<Vec<_>>())
        };
        let of_attention = ["W_Q", "W_K", "W_V", "W_O_0"].map(String::from).to_vec();
        assert_eq!(padded(attention_graph(0), Some(1)), (of_attention, vec!["hook_z".into()]));
        let of_mlp = ["W_in", "W_gate", "W_out"].map(String::from).to_vec();
        assert_eq!(padded(mlp_graph(0), Some(1)), (of_mlp, vec!["mlp_post".into()]));
        // It has no rows of so many.
        assert_eq!(padded(mlp_graph(0), Some(ALIASED)), (vec![], vec![]));
        assert_eq!(padded(mlp_graph(0), None), (vec![], vec![]));
    }
}
