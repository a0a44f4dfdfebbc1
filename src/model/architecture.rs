//! What a decoder-only transformer is made of, for the block builder in `export`.

use ndarray::{Array1, Array2};
use serde::{Deserialize, Serialize};

/// Sizes and constants of a model. Matrices act on rows: a projection is \[in, out\].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Architecture {
    /// The checkpoint's `model_type`.
    pub family: String,
    pub layers: usize,
    pub heads: usize,
    /// Heads of keys and values; query heads are shared among them in order (grouped-query attention).
    pub kv_heads: usize,
    pub d_model: usize,
    pub d_head: usize,
    pub d_mlp: usize,
    pub vocab: usize,
    /// The longest prompt the positions allow.
    pub context: usize,
    /// ε of the RMS norms: scale = √(mean square + ε).
    pub norm_eps: f32,
    /// Base of the rotary embedding, which turns all d_head dimensions, first half against second half.
    pub rotary_base: f64,
    /// The element type the checkpoint stores most of its weights in.
    pub dtype: String,
}

impl Architecture {
    /// Weights that multiply every position of one block: attention's four matrices and the MLP's three.
    pub fn block_weights(&self) -> (usize, usize) {
        let attention = self.d_model * self.d_head * (2 * self.heads + 2 * self.kv_heads);
        (attention, 3 * self.d_model * self.d_mlp)
    }

    /// Necessary multiply-adds × 2 to ablate one head of `layer` at one position: the MLP of its own layer and every
    /// later block (attention's own score and value products are not counted).
    pub fn ablation_flops(&self, layer: usize) -> f64 {
        let (attention, mlp) = self.block_weights();
        2.0 * (mlp as f64 + (self.layers - 1 - layer) as f64 * (attention + mlp) as f64)
    }

    /// √(mean square + ε) of the final norm turned into the norm ‖r‖ of the stream it came from.
    pub fn residual_norm(&self, norm_scale: f64) -> f64 {
        (self.d_model as f64 * (norm_scale * norm_scale - self.norm_eps as f64)).max(0.0).sqrt()
    }

    pub fn parameters(&self) -> usize {
        let (attention, mlp) = self.block_weights();
        self.layers * (attention + mlp + 2 * self.d_model) + self.d_model + self.vocab * self.d_model
    }
}

/// The weights of one block.
pub struct LayerWeights {
    /// γ of the norm before attention, \[d_model\].
    pub attention_norm: Array1<f32>,
    /// \[d_model, heads · d_head\]
    pub w_q: Array2<f32>,
    /// \[d_model, kv_heads · d_head\]
    pub w_k: Array2<f32>,
    /// \[d_model, kv_heads · d_head\]
    pub w_v: Array2<f32>,
    /// γ of the norm before the MLP, \[d_model\].
    pub mlp_norm: Array1<f32>,
    /// \[d_model, d_mlp\]
    pub w_gate: Array2<f32>,
    /// \[d_model, d_mlp\]
    pub w_in: Array2<f32>,
    /// \[d_mlp, d_model\]
    pub w_out: Array2<f32>,
}

/// What is before the first and after the last block.
pub struct Ends {
    /// W_E, \[vocab, d_model\].
    pub embedding: Array2<f32>,
    /// γ of the final norm, \[d_model\].
    pub final_norm: Array1<f32>,
    /// W_Uᵀ, \[vocab, d_model\]; `None` when tied to the embedding.
    pub unembedding: Option<Array2<f32>>,
}
