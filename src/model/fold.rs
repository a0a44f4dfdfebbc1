//! Folding (docs/definitions.md, "Folding"): β of every norm that reads the stream moves into the biases behind it, and
//! value biases move through W_O into b_O, so that `z` is free of them. γ stays in the graph, which computes the same.

use ndarray::{Array1, Array2, ArrayView1, s};

use super::architecture::{Architecture, LayerWeights, Linear, NormWeights};

/// The biases of one block's attention after folding; `None` where there is nothing to add.
pub struct FoldedBiases {
    pub q: Option<Array1<f32>>,
    pub k: Option<Array1<f32>>,
    /// With attention sinks, weights do not sum to 1: what values have in common then differs from position to position,
    /// and stays with z.
    pub v: Option<Array1<f32>>,
    /// b_O' = b_O + Σ_h b_V'^h W_O^h
    pub o: Option<Array1<f32>>,
}

impl LayerWeights {
    pub fn folded_biases(&self, a: &Architecture) -> FoldedBiases {
        let value = folded(&self.attention_norm, &self.v);
        let (v, value) = if self.sinks.is_some() { (value, None) } else { (None, value) };
        FoldedBiases {
            q: folded(&self.attention_norm, &self.q),
            k: folded(&self.attention_norm, &self.k),
            v,
            o: output_bias(a, &self.o, value),
        }
    }

    /// The bias of a projection that reads the stream through the norm before the MLP.
    pub fn behind_mlp_norm(&self, linear: &Linear) -> Option<Array1<f32>> {
        folded(&self.mlp_norm, linear)
    }
}

/// b' = b + β W
fn folded(norm: &NormWeights, linear: &Linear) -> Option<Array1<f32>> {
    match (&norm.beta, &linear.b) {
        (None, b) => b.clone(),
        (Some(beta), b) => {
            let mut sum = times(beta.view(), &linear.w);
            if let Some(b) = b {
                sum.iter_mut().zip(b).for_each(|(s, &b)| *s += f64::from(b));
            }
            Some(sum.mapv(|v| v as f32))
        }
    }
}

fn output_bias(a: &Architecture, o: &Linear, value: Option<Array1<f32>>) -> Option<Array1<f32>> {
    let Some(value) = value else { return o.b.clone() };
    // Query head h reads the values of head h / (heads / kv_heads).
    let by_head: Array1<f32> = (0..a.heads)
        .flat_map(|h| {
            let kv = h / (a.heads / a.kv_heads);
            value.slice(s![kv * a.d_head..(kv + 1) * a.d_head]).to_vec()
        })
        .collect();
    let mut sum = times(by_head.view(), &o.w);
    if let Some(b) = &o.b {
        sum.iter_mut().zip(b).for_each(|(s, &b)| *s += f64::from(b));
    }
    Some(sum.mapv(|v| v as f32))
}

/// x W in float64.
fn times(x: ArrayView1<f32>, w: &Array2<f32>) -> Array1<f64> {
    let mut sum = Array1::zeros(w.ncols());
    for (&x, row) in x.iter().zip(w.rows()) {
        sum.iter_mut().zip(row).for_each(|(s, &w): (&mut f64, _)| *s += f64::from(x) * f64::from(w));
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn norm_biases_move_behind_the_norm() {
        let norm = NormWeights { gamma: array![1.0, 1.0], beta: Some(array![1.0, 2.0]) };
        let linear = Linear { w: array![[1.0, 0.0], [10.0, 3.0]], b: Some(array![0.5, 0.5]) };
        assert_eq!(folded(&norm, &linear).unwrap(), array![21.5, 6.5]);
        let norm = NormWeights { beta: None, ..norm };
        assert_eq!(folded(&norm, &linear).unwrap(), array![0.5, 0.5]);
    }
}
