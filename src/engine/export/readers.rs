//! How a block's projections read the stream: through the norm, or, for the next readers of an ablated head, as a
//! difference from the clean stream.
//!
//! Ablating a head changes the stream r by Δz W_O, of rank d_head. Let s and s' be the norm's scales before and after.
//! A projection W behind a norm with γ then computes
//!
//! x' W = (s (x W) + Δz (W_O γ W)) / s'
//!
//! where x = γ r / s is the clean normed stream (with LayerNorm, r and W_O are centred). x W is computed once for all
//! heads of a layer, and W_O γ W once per run, so the product with Δz has inner dimension d_head instead of D.
//!
//! Where what attention writes goes through a norm with γ_post, whose scales before and after are t and t', r changes by
//! a (t / t' − 1) + Δz W_O γ_post / t', with a what attention wrote in the clean run. Then
//!
//! x' W = (s (x W) + (t / t' − 1) (a γ W) + Δz (W_O γ_post γ W) / t') / s'
//!
//! Where the stream is read without a norm, γ, s and s' are 1.

use super::graphs::{B, P, S, norm, project, scaled_by};
use super::onnx::{Dim, GraphBuilder, Role, Stored, int};
use super::stored::{HeadWeights, StoredLayer};
use crate::hooks::{HookPoint, Projection};
use selfrepair_model::{Architecture, Norm};

const ATTENTION: [Projection; 3] = [Projection::Q, Projection::K, Projection::V];
const MLP: [Projection; 2] = [Projection::In, Projection::Gate];

/// The projections of a block's attention and of its MLP that read a head's change first: those of its own MLP, or, where
/// attention and MLP are parallel, of the next block's attention and MLP.
pub fn readers(a: &Architecture) -> (&'static [Projection], &'static [Projection]) {
    (&ATTENTION[..if a.parallel { 3 } else { 0 }], &MLP[..if a.gated { 2 } else { 1 }])
}

/// The stream as a block's projections read it.
pub enum Reading {
    /// Normed, or as it is.
    Stream(String),
    /// By its difference from the clean stream.
    AfterHead {
        /// s / s', [B, S, 1]; `None` where both are 1.
        ratio: Option<String>,
        /// Δz / s' [/ t'], [B, S, d_head].
        change: String,
        /// (t / t' − 1) / s', [B, S, 1], if what attention writes is normed.
        of_written: Option<String>,
        head: String,
        heads: usize,
        d_head: usize,
    },
}

impl Reading {
    /// Through the norm with `gamma`, if the model has such norms.
    pub fn of(g: &mut GraphBuilder, a: &Architecture, stream: &str, gamma: &Stored) -> Self {
        Self::Stream(normed(g, a, stream, gamma, "normed"))
    }

    /// `stream` is the changed one.
    pub fn after_head(g: &mut GraphBuilder, a: &Architecture, stream: &str) -> Self {
        let z_change = g.input(HookPoint::ZChange, &[B, S, Dim::Size(a.d_head)], "replacement z less clean z");
        let head = g.int_input(HookPoint::Head, &[B], "which head");
        let (mut change, mut of_written) = (z_change, None);
        if a.write_norms {
            let before = write_scale(g, HookPoint::CleanAttnWriteScale, P);
            let after = write_scale(g, HookPoint::AttnWriteScale, B);
            change = g.node("Div", &[&change, &after], "z_change_written", vec![]);
            let less = g.node("Sub", &[&before, &after], "scale_less", vec![]);
            of_written = Some(g.node("Div", &[&less, &after], "of_written", vec![]));
        }
        let mut ratio = None;
        if a.read_norms {
            let dims = [P, S, Dim::Size(a.d_model)];
            let clean = g.input(HookPoint::CleanResid, &dims, "the same stream before the head was replaced");
            let before = norm_scale(g, a, &clean, "clean_scale");
            let after = norm_scale(g, a, stream, "scale");
            ratio = Some(g.node("Div", &[&before, &after], "ratio", vec![]));
            change = g.node("Div", &[&change, &after], "z_change_scaled", vec![]);
            of_written = of_written.map(|of| g.node("Div", &[&of, &after], "of_written_scaled", vec![]));
        }
        Self::AfterHead { ratio, change, of_written, head, heads: a.heads, d_head: a.d_head }
    }

    /// x W + b.
    pub fn project(&self, g: &mut GraphBuilder, projection: Projection, w: &Stored, b: &Option<Stored>) -> String {
        let name = projection.name();
        let (ratio, change, of_written, head, sizes) = match self {
            Self::Stream(x) => return project(g, x, w, b, name),
            Self::AfterHead { ratio, change, of_written, head, heads, d_head } => {
                (ratio, change, of_written, head, [*heads, *d_head].map(Dim::Size))
            }
        };
        let width = Dim::Size(w.columns());
        let clean = g.input(HookPoint::CleanRead(projection), &[P, S, width], "what it reads of the clean stream");
        let combined = g.input(HookPoint::OfHeads(projection), &[sizes[0], sizes[1], width], "W_O γ W of every head");
        let of_head = g.node("Gather", &[&combined, head], &format!("{name}_of_head"), vec![]);
        let product = g.node("MatMul", &[change, &of_head], &format!("{name}_change"), vec![]);
        let bias = b.as_ref().map(|b| g.weight(b));
        let (of_stream, sum) = match (of_written, &bias) {
            (None, None) => (name.to_string(), name.to_string()),
            (None, Some(_)) => (format!("{name}_product"), format!("{name}_product")),
            (Some(_), None) => (format!("{name}_of_stream"), name.to_string()),
            (Some(_), Some(_)) => (format!("{name}_of_stream"), format!("{name}_product")),
        };
        let scaled = match ratio {
            Some(ratio) => g.node("Mul", &[&clean, ratio], &format!("{name}_scaled"), vec![]),
            None => clean,
        };
        g.node("Add", &[&scaled, &product], &of_stream, vec![]);
        if let Some(of_written) = of_written {
            let attention = g.input(HookPoint::CleanAttnRead(projection), &[P, S, width], "a γ W");
            let more = g.node("Mul", &[&attention, of_written], &format!("{name}_of_attention"), vec![]);
            g.node("Add", &[&more, &of_stream], &sum, vec![]);
        }
        match bias {
            None => sum,
            Some(b) => g.node("Add", &[&sum, &b], name, vec![]),
        }
    }
}

/// The stream as it is read: through the norm with `gamma`, if the model has such norms.
pub fn normed(g: &mut GraphBuilder, a: &Architecture, stream: &str, gamma: &Stored, name: &str) -> String {
    if a.read_norms { norm(g, a, stream, gamma, name) } else { stream.to_string() }
}

/// A scale of the norm on what attention writes, as a column: [.., S, 1].
fn write_scale(g: &mut GraphBuilder, point: HookPoint, rows: Dim) -> String {
    let scale = g.input(point, &[rows, S], "the scale of the norm on what attention writes");
    let axis = g.int_constant(&format!("axis_of_{}", point.name()), &[2]);
    g.node("Unsqueeze", &[&scale, &axis], &format!("{}_column", point.name()), vec![])
}

/// √(mean x² + ε), of the centred stream under layer norms: [.., S, 1].
pub fn norm_scale(g: &mut GraphBuilder, a: &Architecture, x: &str, name: &str) -> String {
    let axis = g.int_constant(&format!("axis_of_{name}"), &[2]);
    let mean =
        |g: &mut GraphBuilder, x: &str, name: &str| g.node("ReduceMean", &[x, &axis], name, vec![int("keepdims", 1)]);
    let x = match a.norm {
        Norm::Rms => x.to_string(),
        Norm::Layer => {
            let mean = mean(g, x, &format!("{name}_mean"));
            g.node("Sub", &[x, &mean], &format!("{name}_centred"), vec![])
        }
    };
    let squares = g.node("Mul", &[&x, &x], &format!("{name}_squares"), vec![]);
    let mean = mean(g, &squares, &format!("{name}_mean_square"));
    let epsilon = g.constant(&format!("epsilon_of_{name}"), &[1], &[a.norm_eps]);
    let sum = g.node("Add", &[&mean, &epsilon], &format!("{name}_squared"), vec![]);
    g.node("Sqrt", &[&sum], name, vec![])
}

/// The first readers in a block, each with the γ of its norm and its weights.
fn projections<'a>(a: &Architecture, w: &'a StoredLayer) -> impl Iterator<Item = (Projection, &'a Stored, &'a Stored)> {
    let (attention, mlp) = readers(a);
    attention.iter().chain(mlp).filter_map(|&projection| {
        let (gamma, w) = match projection {
            Projection::Q => (&w.attention_norm, Some(&w.w_q)),
            Projection::K => (&w.attention_norm, Some(&w.w_k)),
            Projection::V => (&w.attention_norm, Some(&w.w_v)),
            Projection::Gate => (&w.mlp_norm, w.mlp.dense().and_then(|mlp| mlp.w_gate.as_ref())),
            Projection::In => (&w.mlp_norm, w.mlp.dense().map(|mlp| &mlp.w_in)),
        };
        Some((projection, gamma, w?))
    })
}

/// residual [P, S, D] → what every projection of the first readers reads of it, before biases; and, where what attention
/// writes is normed, what it reads of that.
pub fn clean_reads(a: &Architecture, layer: usize, w: &StoredLayer, weights: &str) -> GraphBuilder {
    let doc =
        format!("What the projections of block {layer} that read a replaced head first read of the clean stream.");
    let mut g = GraphBuilder::new(&super::clean_reads_graph(layer), Role::Projections, &doc, weights);
    let residual = g.input(HookPoint::Resid, &[P, S, Dim::Size(a.d_model)], "the clean stream that they read");
    let dims = [P, S, Dim::Size(a.d_model)];
    let attention = a.write_norms.then(|| g.input(HookPoint::AttnOut, &dims, "what attention wrote"));
    for (projection, gamma, w) in projections(a, w) {
        let (name, width) = (projection.name(), Dim::Size(w.columns()));
        let normed = normed(&mut g, a, &residual, gamma, &format!("{name}_normed"));
        let read = HookPoint::CleanRead(projection);
        project(&mut g, &normed, w, &None, &read.name());
        g.output(read, &[P, S, width], "x W");
        if let Some(attention) = &attention {
            let gamma = a.read_norms.then_some(gamma);
            let scaled = scaled_by(&mut g, attention, gamma, &format!("{name}_of_attention"));
            let read = HookPoint::CleanAttnRead(projection);
            project(&mut g, &scaled, w, &None, &read.name());
            g.output(read, &[P, S, width], "a γ W");
        }
    }
    g
}

/// W_O γ W, or W_O γ_post γ W, of every head that writes to the first readers in block `layer`.
pub fn combined(a: &Architecture, layer: usize, w: &StoredLayer, writes: &HeadWeights, weights: &str) -> GraphBuilder {
    let (heads, d_head, d) = (a.heads, a.d_head, a.d_model);
    let doc = format!("What the projections of block {layer} read of each head that writes to them first.");
    let mut g = GraphBuilder::new(&super::combined_graph(layer), Role::Exact, &doc, weights);
    let mut written = g.weight(&writes.w_o.reshaped(&[heads, d_head, d]));
    written = scaled_by(&mut g, &written, writes.write_norm.as_ref(), "W_O_written");
    if a.norm == Norm::Layer {
        let axis = g.int_constant("axis_of_mean", &[2]);
        let mean = g.node("ReduceMean", &[&written, &axis], "W_O_mean", vec![int("keepdims", 1)]);
        written = g.node("Sub", &[&written, &mean], "W_O_centred", vec![]);
    }
    for (projection, gamma, w) in projections(a, w) {
        let gamma = a.read_norms.then_some(gamma);
        let scaled = scaled_by(&mut g, &written, gamma, &format!("{}_W_O", projection.name()));
        let combined = HookPoint::OfHeads(projection);
        project(&mut g, &scaled, w, &None, &combined.name());
        g.output(combined, &[Dim::Size(heads), Dim::Size(d_head), Dim::Size(w.columns())], "W_O γ W");
    }
    g
}
