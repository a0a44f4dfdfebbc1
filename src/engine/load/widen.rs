//! Gives graphs float32 weights where the file has 16-bit floats, so that nothing is converted while they run.

use std::collections::BTreeMap;

use crate::export::onnx::{Element, FLOAT, GraphProto, HALF, NodeProto};

/// A tensor that the file has as 16-bit floats.
#[derive(Clone, Copy)]
pub struct Narrow {
    pub element: Element,
    /// The graph takes it as float32.
    pub is_widened: bool,
}

/// Takes away the nodes that convert a whole stored tensor: it takes the name of the converted one, and the graph takes it
/// as float32. Returns the tensors that the file has as 16-bit floats, by their names after that.
pub fn widen(graph: &mut GraphProto) -> BTreeMap<String, Narrow> {
    let is_cast = |n: &NodeProto| n.op_type == "Cast" && n.input[0].ends_with(HALF);
    let (casts, nodes): (Vec<_>, Vec<_>) = std::mem::take(&mut graph.node).into_iter().partition(is_cast);
    graph.node = nodes;
    let mut found = BTreeMap::new();
    for tensor in graph.initializer.iter_mut().filter(|t| !t.external_data.is_empty()) {
        let Some(element @ Element::Half(_)) = Element::of_type(tensor.data_type) else { continue };
        let cast = casts.iter().find(|n| n.input[0] == tensor.name);
        if let Some(cast) = cast {
            tensor.name.clone_from(&cast.output[0]);
            tensor.data_type = FLOAT;
        }
        found.insert(tensor.name.clone(), Narrow { element, is_widened: cast.is_some() });
    }
    found
}
