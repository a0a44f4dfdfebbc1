//! Writes weights to the weights file and records their offsets.

use anyhow::{Context, Result};
use ndarray::{Array1, Array2, ArrayBase, Axis, Data, Dimension};

use super::onnx::{Stored, WeightsFile};
use selfrepair_model::{Architecture, Ends, Experts, FoldedBiases, LayerWeights, Linear, Mlp, MlpWeights, Xielu};

/// Where the weights of a block lie.
pub struct StoredLayer {
    pub attention_norm: Stored,
    pub w_q: Stored,
    pub w_k: Stored,
    pub w_v: Stored,
    pub w_o: Stored,
    pub b_q: Option<Stored>,
    pub b_k: Option<Stored>,
    /// Where it is not part of b_O.
    pub b_v: Option<Stored>,
    pub b_o: Option<Stored>,
    /// γ of the norms of queries and keys.
    pub qk_norm: Option<(Stored, Stored)>,
    /// The logit of each head's sink.
    pub sinks: Option<Vec<f32>>,
    pub mlp_norm: Stored,
    /// γ of the norms on what attention and the MLP write.
    pub write_norms: Option<(Stored, Stored)>,
    pub mlp: StoredMlps,
}

/// Where the weights of an MLP lie, or of all experts of a mixture.
pub enum StoredMlps {
    Dense(Box<StoredMlp>),
    Experts(Box<StoredExperts>),
}

/// Where the weights of an MLP or of one expert lie.
pub struct StoredMlp {
    pub w_gate: Option<Stored>,
    pub w_in: Stored,
    pub w_out: Stored,
    pub b_gate: Option<Stored>,
    pub b_in: Option<Stored>,
    pub b_out: Option<Stored>,
    /// Of its activation, if that has learned numbers.
    pub xielu: Option<Xielu>,
}

/// Where a projection lies.
pub struct StoredLinear {
    pub w: Stored,
    pub b: Option<Stored>,
}

pub struct StoredExperts {
    pub experts: Experts,
    pub router: StoredLinear,
    /// Without the biases of their outputs.
    pub weights: Vec<StoredMlp>,
    /// The biases of their outputs, [experts, D].
    pub output_biases: Option<Stored>,
    /// The expert that every position goes through, and what weights it, if it is weighted.
    pub shared: Option<(StoredMlp, Option<StoredLinear>)>,
}

impl StoredMlps {
    /// The one MLP, if it is no mixture.
    pub fn dense(&self) -> Option<&StoredMlp> {
        match self {
            Self::Dense(mlp) => Some(mlp),
            Self::Experts(_) => None,
        }
    }

    /// W_out of the one MLP, or of all experts, the shared one last.
    pub fn outputs(&self) -> Vec<&Stored> {
        match self {
            Self::Dense(mlp) => vec![&mlp.w_out],
            Self::Experts(of) => {
                of.weights.iter().chain(of.shared.iter().map(|(mlp, _)| mlp)).map(|mlp| &mlp.w_out).collect()
            }
        }
    }
}

/// Appends an array; arrays of weights are all in standard layout.
fn put<S: Data<Elem = f32>, D: Dimension>(f: &mut WeightsFile, name: &str, array: &ArrayBase<S, D>) -> Result<Stored> {
    let standard = array.as_standard_layout();
    f.append(name, array.shape(), standard.as_slice().unwrap_or(&[]))
}

fn put_some(f: &mut WeightsFile, name: &str, array: &Option<Array1<f32>>) -> Result<Option<Stored>> {
    array.as_ref().map(|a| put(f, name, a)).transpose()
}

impl StoredLayer {
    pub fn append(
        f: &mut WeightsFile,
        a: &Architecture,
        layer: usize,
        w: LayerWeights,
        b: FoldedBiases,
    ) -> Result<Self> {
        let qk_norm = match &w.qk_norm {
            Some((q, k)) => Some((put(f, "q_norm", q)?, put(f, "k_norm", k)?)),
            None => None,
        };
        let write_norms = match &w.write_norms {
            // With its layer, because `directions` holds those of all layers.
            Some(of) => Some((
                put(f, &format!("attention_write_norm_{layer}"), &of.attention)?,
                put(f, "mlp_write_norm", &of.mlp)?,
            )),
            None => None,
        };
        Ok(Self {
            attention_norm: put(f, "attention_norm", &w.attention_norm.gamma)?,
            w_q: put(f, "W_Q", &w.q.w)?,
            w_k: put(f, "W_K", &w.k.w)?,
            w_v: put(f, "W_V", &w.v.w)?,
            // With its layer, because `directions` holds those of all layers.
            w_o: put(f, &format!("W_O_{layer}"), &w.o.w)?,
            b_q: put_some(f, "b_Q", &b.q)?,
            b_k: put_some(f, "b_K", &b.k)?,
            b_v: put_some(f, "b_V", &b.v)?,
            b_o: put_some(f, "b_O", &b.o)?,
            qk_norm,
            sinks: w.sinks.as_ref().map(|sinks| sinks.to_vec()),
            mlp_norm: put(f, "mlp_norm", &w.mlp_norm.gamma)?,
            write_norms,
            mlp: put_mlps(f, a, &w)?,
        })
    }

    /// What the layer's heads write with.
    pub fn head_weights(&self) -> HeadWeights {
        let write_norm = self.write_norms.as_ref().map(|(of_attention, _)| of_attention.clone());
        HeadWeights { w_o: self.w_o.clone(), write_norm }
    }
}

fn put_mlps(f: &mut WeightsFile, a: &Architecture, w: &LayerWeights) -> Result<StoredMlps> {
    let of = match &w.mlp {
        MlpWeights::Dense(mlp) => return Ok(StoredMlps::Dense(Box::new(put_mlp(f, w, mlp, "")?))),
        MlpWeights::Xielu(mlp, xielu) => {
            let stored = StoredMlp { xielu: Some(*xielu), ..put_mlp(f, w, mlp, "")? };
            return Ok(StoredMlps::Dense(Box::new(stored)));
        }
        MlpWeights::Experts(of) => of,
    };
    let router = put_read(f, w, &of.router, "router")?;
    let experts = a.experts.clone().context("the architecture has no experts, but this layer has")?;
    let weights = of.experts.iter().enumerate().map(|(e, expert)| put_mlp(f, w, expert, &format!("_{e}")));
    let weights = weights.collect::<Result<_>>()?;
    let output_biases: Option<Vec<&Array1<f32>>> = of.experts.iter().map(|expert| expert.down.b.as_ref()).collect();
    let output_biases = output_biases.filter(|biases| !biases.is_empty()).map(|biases| -> Result<_> {
        let stacked = Array2::from_shape_fn((biases.len(), biases[0].len()), |(e, i)| biases[e][i]);
        put(f, "b_out_of_experts", &stacked)
    });
    let output_biases = output_biases.transpose()?;
    let shared = match &of.shared {
        None => None,
        Some(shared) => {
            let gate = shared.gate.as_ref().map(|gate| put_read(f, w, gate, "shared_gate")).transpose()?;
            Some((put_mlp(f, w, &shared.mlp, "_shared")?, gate))
        }
    };
    Ok(StoredMlps::Experts(Box::new(StoredExperts { experts, router, weights, output_biases, shared })))
}

/// A projection that reads the stream behind the norm before the MLP.
fn put_read(f: &mut WeightsFile, w: &LayerWeights, linear: &Linear, name: &str) -> Result<StoredLinear> {
    let b = w.behind_mlp_norm(linear);
    Ok(StoredLinear { w: put(f, &format!("W_{name}"), &linear.w)?, b: put_some(f, &format!("b_{name}"), &b)? })
}

/// `suffix` tells experts apart, which one graph holds.
fn put_mlp(f: &mut WeightsFile, w: &LayerWeights, mlp: &Mlp, suffix: &str) -> Result<StoredMlp> {
    let (w_gate, b_gate) = match &mlp.gate {
        None => (None, None),
        Some(gate) => {
            let StoredLinear { w, b } = put_read(f, w, gate, &format!("gate{suffix}"))?;
            (Some(w), b)
        }
    };
    let StoredLinear { w: w_in, b: b_in } = put_read(f, w, &mlp.up, &format!("in{suffix}"))?;
    Ok(StoredMlp {
        w_gate,
        b_gate,
        w_in,
        b_in,
        w_out: put(f, &format!("W_out{suffix}"), &mlp.down.w)?,
        b_out: put_some(f, &format!("b_out{suffix}"), &mlp.down.b)?,
        xielu: None,
    })
}

/// What the heads of a layer write to the stream with.
pub struct HeadWeights {
    pub w_o: Stored,
    /// γ of the norm on what attention writes.
    pub write_norm: Option<Stored>,
}

/// Where the weights around the blocks lie.
pub struct EndWeights {
    pub embedding: Stored,
    pub positions: Option<Stored>,
    /// W_Uᵀ, [vocab, D]; the embedding itself when tied.
    pub unembedding: Stored,
    pub unembedding_bias: Option<Stored>,
    /// Mean of b_U over the vocabulary.
    pub unembedding_bias_mean: f32,
    pub final_norm: Stored,
    pub final_norm_beta: Option<Stored>,
    /// mean_v W_U, [D]: what centres the unembedding.
    pub unembedding_mean: Stored,
    /// b_O' of every layer, times γ of the norm on what attention writes if there is one, [D, layers].
    pub attention_biases: Option<Stored>,
}

impl EndWeights {
    pub fn append(f: &mut WeightsFile, ends: Ends, attention_biases: Vec<Option<Array1<f32>>>) -> Result<Self> {
        let embedding = put(f, "W_E", &ends.embedding)?;
        let unembedding = match &ends.unembedding {
            Some(w) => put(f, "W_U", w)?,
            None => embedding.clone(),
        };
        let source = ends.unembedding.as_ref().unwrap_or(&ends.embedding);
        let bias_mean = ends
            .unembedding_bias
            .as_ref()
            .map_or(0.0, |b| (b.iter().map(|&v| f64::from(v)).sum::<f64>() / b.len() as f64) as f32);
        let biases: Option<Vec<Array1<f32>>> = attention_biases.into_iter().collect();
        let biases = biases.map(|b| {
            let d = b[0].len();
            Array2::from_shape_fn((d, b.len()), |(i, l)| b[l][i])
        });
        Ok(Self {
            positions: ends.positions.as_ref().map(|p| put(f, "W_pos", p)).transpose()?,
            unembedding_bias: put_some(f, "b_U", &ends.unembedding_bias)?,
            unembedding_bias_mean: bias_mean,
            final_norm: put(f, "final_norm", &ends.final_norm.gamma)?,
            final_norm_beta: put_some(f, "final_norm_beta", &ends.final_norm.beta)?,
            unembedding_mean: put(f, "W_U_mean", &column_means(source))?,
            attention_biases: biases.map(|b| put(f, "b_O_by_layer", &b)).transpose()?,
            embedding,
            unembedding,
        })
    }
}

/// Mean over rows, summed in float64.
fn column_means(m: &Array2<f32>) -> Array1<f32> {
    let sum = m.axis_iter(Axis(0)).fold(Array1::<f64>::zeros(m.ncols()), |mut sum, row| {
        sum.iter_mut().zip(row).for_each(|(s, &v)| *s += f64::from(v));
        sum
    });
    sum.mapv(|s| (s / m.nrows() as f64) as f32)
}
