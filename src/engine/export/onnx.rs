//! The part of the ONNX format this program writes (onnx.proto, IR version 10), and a small graph builder.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use prost::Message;

pub use super::element::Element;
use crate::hooks::HookPoint;

#[derive(Clone, PartialEq, Message)]
pub struct ModelProto {
    #[prost(int64, tag = "1")]
    pub ir_version: i64,
    #[prost(string, tag = "2")]
    pub producer_name: String,
    #[prost(string, tag = "3")]
    pub producer_version: String,
    #[prost(int64, tag = "5")]
    pub model_version: i64,
    #[prost(string, tag = "6")]
    pub doc_string: String,
    #[prost(message, optional, tag = "7")]
    pub graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSetIdProto>,
    #[prost(message, repeated, tag = "14")]
    pub metadata_props: Vec<StringStringEntryProto>,
}

#[derive(Clone, PartialEq, Message)]
pub struct OperatorSetIdProto {
    #[prost(string, tag = "1")]
    pub domain: String,
    #[prost(int64, tag = "2")]
    pub version: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<NodeProto>,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfoProto>,
}

#[derive(Clone, PartialEq, Message)]
pub struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    #[prost(string, tag = "3")]
    pub name: String,
    #[prost(string, tag = "4")]
    pub op_type: String,
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<AttributeProto>,
    /// Whose operator it is; of the standard, if empty.
    #[prost(string, tag = "7")]
    pub domain: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct AttributeProto {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(float, optional, tag = "2")]
    pub f: Option<f32>,
    #[prost(int64, optional, tag = "3")]
    pub i: Option<i64>,
    #[prost(bytes = "vec", optional, tag = "4")]
    pub s: Option<Vec<u8>>,
    #[prost(int64, repeated, packed = "false", tag = "8")]
    pub ints: Vec<i64>,
    #[prost(int32, tag = "20")]
    pub kind: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct TensorProto {
    #[prost(int64, repeated, tag = "1")]
    pub dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    pub data_type: i32,
    #[prost(string, tag = "8")]
    pub name: String,
    #[prost(bytes = "vec", tag = "9")]
    pub raw_data: Vec<u8>,
    #[prost(message, repeated, tag = "13")]
    pub external_data: Vec<StringStringEntryProto>,
    #[prost(int32, tag = "14")]
    pub data_location: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct StringStringEntryProto {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ValueInfoProto {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<TypeProto>,
    #[prost(string, tag = "3")]
    pub doc_string: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct TypeProto {
    #[prost(message, optional, tag = "1")]
    pub tensor_type: Option<TensorTypeProto>,
}

#[derive(Clone, PartialEq, Message)]
pub struct TensorTypeProto {
    #[prost(int32, tag = "1")]
    pub elem_type: i32,
    #[prost(message, optional, tag = "2")]
    pub shape: Option<TensorShapeProto>,
}

#[derive(Clone, PartialEq, Message)]
pub struct TensorShapeProto {
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<DimensionProto>,
}

#[derive(Clone, PartialEq, Message)]
pub struct DimensionProto {
    #[prost(oneof = "Dimension", tags = "1, 2")]
    pub value: Option<Dimension>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Dimension {
    #[prost(int64, tag = "1")]
    Value(i64),
    #[prost(string, tag = "2")]
    Param(String),
}

/// Opset of the operators used: `Attention`, `RotaryEmbedding` and `RMSNormalization` are standard from 23 on.
const OPSET: i64 = 23;
const IR_VERSION: i64 = 10;

/// Of the graphs that are written. Raised whenever graphs are added, or one has other inputs or outputs.
pub const VERSION: i64 = 2;

/// Ends the names of tensors that are stored as 16-bit floats.
pub(crate) const HALF: &str = "_half";

pub(crate) const FLOAT: i32 = 1;
const INT64: i32 = 7;
const BOOL: i32 = 9;

/// A dimension in a graph's signature: a fixed size or a name.
#[derive(Clone, Copy)]
pub enum Dim {
    Size(usize),
    Name(&'static str),
}

/// A tensor inside the weights file, which every graph of a model refers to by offset.
#[derive(Clone)]
pub struct Stored {
    pub name: String,
    dims: Vec<usize>,
    offset: u64,
    element: Element,
}

impl Stored {
    /// Size of the last dimension.
    pub fn columns(&self) -> usize {
        self.dims[self.dims.len() - 1]
    }

    /// The same bytes as a tensor of another shape.
    pub fn reshaped(&self, dims: &[usize]) -> Self {
        assert_eq!(dims.iter().product::<usize>(), self.dims.iter().product::<usize>());
        Self { dims: dims.to_vec(), ..self.clone() }
    }
}

/// A tensor that a graph reads from a weights file.
#[derive(Clone)]
pub struct ExternalWeight {
    pub name: String,
    pub dims: Vec<usize>,
    /// Name of the file, in the graph's folder.
    pub file: String,
    pub offset: u64,
}

impl GraphProto {
    /// The tensors that the graph reads from its weights file.
    pub fn external_weights(&self) -> Result<Vec<ExternalWeight>> {
        let external = self.initializer.iter().filter(|t| !t.external_data.is_empty());
        external
            .map(|t| {
                let entry = |key: &str| t.external_data.iter().find(|e| e.key == key).map(|e| e.value.clone());
                let parse = || {
                    let file = entry("location").filter(|f| !f.contains(['/', '\\']))?;
                    Some((file, entry("offset")?.parse().ok()?))
                };
                let (file, offset) = parse().with_context(|| format!("where is {}?", t.name))?;
                let dims = t.dims.iter().map(|&d| d as usize).collect();
                Ok(ExternalWeight { dims, name: t.name.clone(), file, offset })
            })
            .collect()
    }
}

/// The one file of weights behind all graphs: little-endian float32, or 16-bit floats where they have all numbers exactly.
pub struct WeightsFile {
    file: BufWriter<File>,
    path: PathBuf,
    name: String,
    offset: u64,
}

impl WeightsFile {
    /// External data is mapped at page granularity; aligned tensors are used in place.
    const ALIGNMENT: u64 = 64;

    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { file: BufWriter::with_capacity(1 << 20, file), path: path.to_path_buf(), name, offset: 0 })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Appends a tensor in row-major order.
    pub fn append(&mut self, name: &str, dims: &[usize], values: &[f32]) -> Result<Stored> {
        assert_eq!(dims.iter().product::<usize>(), values.len(), "{name}: {dims:?}");
        let padding = self.offset.next_multiple_of(Self::ALIGNMENT) - self.offset;
        let element = Element::of(values);
        let mut write = || -> std::io::Result<()> {
            self.file.write_all(&vec![0; padding as usize])?;
            element.write(values, &mut self.file)
        };
        write().with_context(|| format!("cannot write {}", self.path.display()))?;
        self.offset += padding;
        let stored = Stored { name: name.into(), dims: dims.to_vec(), offset: self.offset, element };
        self.offset += (element.bytes() * values.len()) as u64;
        Ok(stored)
    }

    pub fn finish(mut self) -> Result<()> {
        let flushed = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        flushed.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// Builds one graph. Every operator method adds a node and returns the name of its output.
pub struct GraphBuilder {
    graph: GraphProto,
    role: Role,
    doc: String,
    weights_file: String,
}

/// What a graph computes, which decides how it is loaded. The file says it, under the key `role`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Projections of a block, or the product that the machine is measured by: a lower precision applies to them, and
    /// rows are padded.
    Projections,
    /// The ends of the model, and what computes small differences by products of its own: always float32.
    Exact,
}

const ROLE: &str = "role";

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Projections => "projections",
            Self::Exact => "exact",
        }
    }
}

impl ModelProto {
    /// What the graph computes.
    pub fn role(&self) -> Role {
        let is = |role: Role| self.metadata_props.iter().any(|entry| entry.key == ROLE && entry.value == role.name());
        if is(Role::Projections) { Role::Projections } else { Role::Exact }
    }
}

impl GraphBuilder {
    pub fn new(name: &str, role: Role, doc: &str, weights_file: &str) -> Self {
        let graph = GraphProto { name: name.into(), ..Default::default() };
        Self { graph, role, doc: doc.into(), weights_file: weights_file.into() }
    }

    pub fn input(&mut self, point: HookPoint, dims: &[Dim], doc: &str) -> String {
        self.typed_input(point, FLOAT, dims, doc)
    }

    pub fn int_input(&mut self, point: HookPoint, dims: &[Dim], doc: &str) -> String {
        self.typed_input(point, INT64, dims, doc)
    }

    pub fn bool_input(&mut self, point: HookPoint, dims: &[Dim], doc: &str) -> String {
        self.typed_input(point, BOOL, dims, doc)
    }

    fn typed_input(&mut self, point: HookPoint, elem_type: i32, dims: &[Dim], doc: &str) -> String {
        self.graph.input.push(value_info(&point.name(), elem_type, dims, doc));
        point.name().into_owned()
    }

    /// Declares an output; a node must write it.
    pub fn output(&mut self, point: HookPoint, dims: &[Dim], doc: &str) {
        self.graph.output.push(value_info(&point.name(), FLOAT, dims, doc));
    }

    pub fn int_output(&mut self, point: HookPoint, dims: &[Dim], doc: &str) {
        self.graph.output.push(value_info(&point.name(), INT64, dims, doc));
    }

    /// A stored tensor as float32.
    pub fn weight(&mut self, stored: &Stored) -> String {
        let Element::Half(_) = stored.element else { return self.stored(stored, &stored.name) };
        if !self.graph.node.iter().any(|n| n.output[0] == stored.name) {
            let half = self.stored(stored, &format!("{}{HALF}", stored.name));
            self.node("Cast", &[&half], &stored.name, vec![int("to", i64::from(FLOAT))]);
        }
        stored.name.clone()
    }

    /// The rows of a stored tensor that `indices` name, as float32.
    pub fn rows_of(&mut self, stored: &Stored, indices: &str, name: &str) -> String {
        let Element::Half(_) = stored.element else {
            let table = self.stored(stored, &stored.name);
            return self.node("Gather", &[&table, indices], name, vec![]);
        };
        let table = self.stored(stored, &format!("{}{HALF}_rows", stored.name));
        let rows = self.node("Gather", &[&table, indices], &format!("{name}_narrow"), vec![]);
        self.node("Cast", &[&rows], name, vec![int("to", i64::from(FLOAT))])
    }

    fn stored(&mut self, stored: &Stored, name: &str) -> String {
        if self.graph.initializer.iter().any(|t| t.name == name) {
            return name.into();
        }
        let entry = |key: &str, value: String| StringStringEntryProto { key: key.into(), value };
        let bytes = stored.element.bytes() * stored.dims.iter().product::<usize>();
        self.graph.initializer.push(TensorProto {
            dims: stored.dims.iter().map(|&d| d as i64).collect(),
            data_type: stored.element.data_type(),
            name: name.into(),
            external_data: vec![
                entry("location", self.weights_file.clone()),
                entry("offset", stored.offset.to_string()),
                entry("length", bytes.to_string()),
            ],
            data_location: 1,
            ..Default::default()
        });
        name.into()
    }

    pub fn constant(&mut self, name: &str, dims: &[usize], values: &[f32]) -> String {
        let raw_data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.inline(name, dims, FLOAT, raw_data)
    }

    pub fn int_constant(&mut self, name: &str, values: &[i64]) -> String {
        let raw_data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.inline(name, &[values.len()], INT64, raw_data)
    }

    fn inline(&mut self, name: &str, dims: &[usize], data_type: i32, raw_data: Vec<u8>) -> String {
        let dims = dims.iter().map(|&d| d as i64).collect();
        self.graph.initializer.push(TensorProto { dims, data_type, name: name.into(), raw_data, ..Default::default() });
        name.into()
    }

    /// Adds a node with one output called `output`.
    pub fn node(&mut self, op: &str, inputs: &[&str], output: &str, attributes: Vec<AttributeProto>) -> String {
        self.nodes(op, inputs, &[output], attributes);
        output.into()
    }

    /// As [`GraphBuilder::node`], with several outputs.
    pub fn nodes(&mut self, op: &str, inputs: &[&str], outputs: &[&str], attributes: Vec<AttributeProto>) {
        self.graph.node.push(NodeProto {
            input: inputs.iter().map(|s| s.to_string()).collect(),
            output: outputs.iter().map(|s| s.to_string()).collect(),
            name: format!("{op}:{}", outputs[0]),
            op_type: op.into(),
            attribute: attributes,
            ..Default::default()
        });
    }

    pub fn save(self, directory: &Path) -> Result<()> {
        let path = directory.join(format!("{}.onnx", self.graph.name));
        std::fs::write(&path, self.bytes()).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The graph as a file of its own.
    pub fn bytes(self) -> Vec<u8> {
        let model = ModelProto {
            ir_version: IR_VERSION,
            producer_name: "selfrepair".into(),
            producer_version: env!("CARGO_PKG_VERSION").into(),
            model_version: VERSION,
            doc_string: self.doc,
            graph: Some(self.graph),
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
            metadata_props: vec![StringStringEntryProto { key: ROLE.into(), value: self.role.name().into() }],
        };
        model.encode_to_vec()
    }
}

pub fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { name: name.into(), i: Some(value), kind: 2, ..Default::default() }
}

pub fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto { name: name.into(), ints: values.to_vec(), kind: 7, ..Default::default() }
}

pub fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto { name: name.into(), f: Some(value), kind: 1, ..Default::default() }
}

pub fn string(name: &str, value: &str) -> AttributeProto {
    AttributeProto { name: name.into(), s: Some(value.into()), kind: 3, ..Default::default() }
}

fn value_info(name: &str, elem_type: i32, dims: &[Dim], doc: &str) -> ValueInfoProto {
    let dim = dims
        .iter()
        .map(|d| DimensionProto {
            value: Some(match d {
                Dim::Size(n) => Dimension::Value(*n as i64),
                Dim::Name(n) => Dimension::Param(n.to_string()),
            }),
        })
        .collect();
    let tensor_type = Some(TensorTypeProto { elem_type, shape: Some(TensorShapeProto { dim }) });
    ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type }), doc_string: doc.into() }
}
