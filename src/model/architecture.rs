//! The architecture of a decoder-only transformer. `export` builds the graphs from it.

use ndarray::{Array1, Array2};

use selfrepair_core::components::{Ablatable, Component};

use crate::mlp::{Experts, MlpWeights};

/// No model has more; a file that says so is damaged.
pub const MOST_LAYERS: usize = 10_000;

/// Sizes and constants of a model. Matrices act on rows: a projection is \[in, out\].
#[derive(Debug, Clone, PartialEq)]
pub struct Architecture {
    /// The checkpoint's `model_type`.
    pub family: String,
    pub layers: usize,
    pub heads: usize,
    /// Heads of keys and values; query heads are shared among them in order (grouped-query attention).
    pub kv_heads: usize,
    pub d_model: usize,
    pub d_head: usize,
    /// Neurons of an MLP, of all its experts together where it is a mixture.
    pub d_mlp: usize,
    /// Where MLPs are mixtures of experts.
    pub experts: Option<Experts>,
    pub vocab: usize,
    /// The longest prompt the positions allow.
    pub context: usize,
    pub norm: Norm,
    /// ε of all norms.
    pub norm_eps: f32,
    /// Attention and MLP read the stream through norms (else as it is; the unembedding always reads through one).
    pub read_norms: bool,
    /// What attention and the MLP write goes through a norm of its own before it is added to the stream.
    pub write_norms: bool,
    /// Attention and MLP read the same stream and are added together (else the MLP reads what attention wrote).
    pub parallel: bool,
    /// Rotary positions; without them and ALiBi, positions are learned vectors added to the embedding.
    pub rotary: Option<Rotary>,
    /// Positions as biases of the scores of attention.
    pub alibi: Option<Alibi>,
    /// Rotary positions of layers with a window, where they differ.
    pub window_rotary: Option<Rotary>,
    /// Queries and keys are RMS-normed before positions are applied.
    pub qk_norm: Option<QkNorm>,
    /// Scores of attention become c · tanh(score / c), before the mask and the softmax.
    pub score_softcap: Option<f32>,
    /// Every head has an attention sink.
    pub sinks: bool,
    /// The model's logits become c · tanh(logit / c). Direct effects and logit changes are about the logits before.
    pub logit_softcap: Option<f32>,
    pub attention: Vec<AttentionKind>,
    /// The MLP multiplies its activation by a second projection.
    pub gated: bool,
    /// Of all layers, unless their weights have one that is learned ([`MlpWeights::Xielu`]).
    pub activation: Activation,
    /// Neurons are the layer norm (without weights) of x · softmax(x) over all neurons, in place of `activation`.
    pub solu: bool,
    pub biases: Biases,
    /// What the token embedding is multiplied by on its way into the stream.
    pub embedding_scale: f32,
    /// What is added to the stream is the norm of the token embedding.
    pub embedding_norm: bool,
    /// The unembedding is the embedding.
    pub tied: bool,
    /// The element type the checkpoint stores most of its weights in.
    pub dtype: String,
}

/// The norm in front of every block part and of the unembedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    /// x / √(mean x² + ε)
    Rms,
    /// (x − mean x) / √(var x + ε)
    Layer,
}

/// What a norm of queries or keys normalises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// Each head on its own; γ is \[d_head\], shared by the heads.
    ByHead,
    /// All heads together; γ is \[heads · d_head\].
    Whole,
}

/// Rotary positions on the first `2 · inverse_frequencies.len()` dimensions of a head, first half against second half.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// Radians a position, by pair of dimensions.
    pub inverse_frequencies: Vec<f64>,
    /// What cos and sin are multiplied by, and so the turned dimensions of queries and of keys.
    pub attention_factor: f64,
    /// The longest prompt that has these frequencies, if there is a limit: LongRoPE has others beyond the context of the
    /// training.
    pub longest: Option<usize>,
}

/// Biases of the scores of attention (ALiBi): each head's grow with the position of the key. A softmax sees differences
/// only, so they are as good as ones that fall with its distance.
#[derive(Debug, Clone, PartialEq)]
pub struct Alibi {
    /// Each head's growth for a position.
    pub slopes: Vec<f32>,
    /// Slopes, positions and their products are rounded to bfloat16.
    pub is_bfloat16: bool,
    /// What the products are multiplied by.
    pub factor: f32,
    /// Positions are counted back from the end of the prompt, which leaves more digits to the keys before it.
    pub is_from_end: bool,
}

impl Alibi {
    /// Of all heads, for a key at this position of a prompt.
    pub fn biases(&self, position: usize, prompt_len: usize) -> Vec<f32> {
        let rounded = |x: f32| if self.is_bfloat16 { to_bfloat16(x) } else { x };
        let from = if self.is_from_end { prompt_len.saturating_sub(1) } else { 0 };
        let position = rounded(position as f32 - from as f32);
        self.slopes.iter().map(|&slope| rounded(rounded(slope) * position) * self.factor).collect()
    }
}

/// The nearest bfloat16, ties to even.
fn to_bfloat16(x: f32) -> f32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    f32::from_bits(nearest & 0xffff_0000)
}

/// What differs between the attentions of one model's layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionKind {
    /// What q · k is multiplied by.
    pub scale: f32,
    /// How many positions, itself included, a position looks back on; `None` is all.
    pub window: Option<usize>,
    /// Whether rotary positions are applied in this layer.
    pub rotary: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    Silu,
    Gelu,
    /// The tanh approximation of GELU.
    GeluTanh,
    Relu,
    /// relu(x)²
    ReluSquared,
}

/// Which biases the checkpoint has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Biases {
    /// β of the norms.
    pub norm: bool,
    pub qkv: bool,
    pub attention_out: bool,
    /// Of the projections into the MLP.
    pub mlp_in: bool,
    pub mlp_out: bool,
    pub unembedding: bool,
}

impl Architecture {
    /// Weights that multiply every position of one block: attention's four matrices, and the MLP's two or three, or a
    /// router and those of the experts that it chooses.
    pub fn block_weights(&self) -> (usize, usize) {
        let router = self.experts.as_ref().map_or(0, |experts| experts.count * self.d_model);
        (self.attention_weights(), router + self.mlp_weights(self.active_neurons()))
    }

    /// As [`Architecture::block_weights`], with all experts.
    pub fn stored_block_weights(&self) -> (usize, usize) {
        let router = self.experts.as_ref().map_or(0, |experts| experts.count * self.d_model);
        (self.attention_weights(), router + self.mlp_weights(self.d_mlp))
    }

    fn attention_weights(&self) -> usize {
        self.d_model * self.d_head * (2 * self.heads + 2 * self.kv_heads)
    }

    fn mlp_weights(&self, neurons: usize) -> usize {
        (2 + usize::from(self.gated)) * self.d_model * neurons
    }

    /// Neurons of an MLP that are computed at a position.
    pub fn active_neurons(&self) -> usize {
        self.experts.as_ref().map_or(self.d_mlp, Experts::active_neurons)
    }

    /// Whether the next readers of a replaced head read its difference from the clean stream (`engine::export::readers`).
    /// Mixtures of experts do not: every expert would have to be computed at every position.
    pub fn reads_by_difference(&self) -> bool {
        self.experts.is_none()
    }

    /// Necessary multiply-adds × 2 to ablate one head of `layer` at one position: the MLP of its own layer (unless the
    /// block is parallel) and every later block. Attention's own score and value products are not counted.
    pub fn ablation_flops(&self, layer: usize) -> f64 {
        let (attention, mlp) = self.block_weights();
        let own = if self.parallel { 0 } else { mlp };
        2.0 * (own as f64 + (self.layers - 1 - layer) as f64 * (attention + mlp) as f64)
    }

    /// As [`Architecture::ablation_flops`], of any component: nothing of its own layer runs again after an MLP or a
    /// whole block.
    pub fn suffix_flops(&self, ablated: &Ablatable) -> f64 {
        let (attention, mlp) = self.block_weights();
        match ablated.component {
            Component::Head | Component::Attention => self.ablation_flops(ablated.layer),
            Component::Mlp | Component::Block => 2.0 * ((self.layers - 1 - ablated.layer) * (attention + mlp)) as f64,
        }
    }

    /// Numbers in W_O γ W, which the projections that read a replaced head first are given instead of the stream: those
    /// of the MLP in every block, or, where it is parallel, of attention and the MLP in every block but the first.
    pub fn first_reader_weights(&self) -> usize {
        if !self.reads_by_difference() {
            return 0;
        }
        let mlp = (1 + usize::from(self.gated)) * self.d_mlp;
        let (blocks, width) = match self.parallel {
            true => (self.layers - 1, (self.heads + 2 * self.kv_heads) * self.d_head + mlp),
            false => (self.layers, mlp),
        };
        blocks * self.heads * self.d_head * width
    }

    /// The norm ‖r‖ of the stream from the scale of the final norm (of the centred stream under layer norms).
    pub fn residual_norm(&self, norm_scale: f64) -> f64 {
        (self.d_model as f64 * (norm_scale * norm_scale - self.norm_eps as f64)).max(0.0).sqrt()
    }

    /// Parameters but for biases.
    pub fn parameters(&self) -> usize {
        let (attention, mlp) = self.stored_block_weights();
        let ends = self.vocab * if self.tied { 1 } else { 2 };
        let positions = if self.learned_positions() { self.context } else { 0 };
        let norms = 2 * usize::from(self.read_norms) + 2 * usize::from(self.write_norms);
        self.layers * (attention + mlp + norms * self.d_model) + (1 + ends + positions) * self.d_model
    }

    /// Numbers in the matrices of the exported graphs: those of parameters, and, where the embedding is normed, the
    /// unembedding besides.
    pub fn stored_numbers(&self) -> usize {
        let unembedding = if self.tied && self.embedding_norm { self.vocab * self.d_model } else { 0 };
        self.parameters() + unembedding
    }

    /// Whether attention writes something to the stream that no head does: b_O, or value biases through W_O.
    pub fn has_attention_bias(&self) -> bool {
        let of_values = (self.biases.norm || self.biases.qkv) && !self.sinks;
        of_values || self.biases.attention_out
    }

    /// Whether the logit has a part k that no component writes.
    pub fn has_constant(&self) -> bool {
        self.biases.norm || self.biases.unembedding
    }

    pub fn learned_positions(&self) -> bool {
        self.rotary.is_none() && self.alibi.is_none()
    }

    /// The rotary positions of a layer, if it has any.
    pub fn rotary_of(&self, layer: usize) -> Option<&Rotary> {
        let kind = self.attention.get(layer).filter(|kind| kind.rotary)?;
        let of_windows = self.window_rotary.as_ref().filter(|_| kind.window.is_some());
        of_windows.or(self.rotary.as_ref())
    }
}

/// γ and β of a norm; β is there if the family has such biases.
#[derive(Clone)]
pub struct NormWeights {
    pub gamma: Array1<f32>,
    pub beta: Option<Array1<f32>>,
}

impl NormWeights {
    /// Of a checkpoint that stores γ − 1.
    pub fn plus_one(mut self) -> Self {
        self.gamma += 1.0;
        self
    }
}

/// The weights of one block, as the checkpoint has them.
pub struct LayerWeights {
    /// γ is 1 where the stream is read as it is.
    pub attention_norm: NormWeights,
    /// \[d_model, heads · d_head\]
    pub q: Linear,
    /// \[d_model, kv_heads · d_head\]
    pub k: Linear,
    /// \[d_model, kv_heads · d_head\]
    pub v: Linear,
    /// \[heads · d_head, d_model\]
    pub o: Linear,
    /// γ of the norms of queries and keys, shaped as [`QkNorm`] says.
    pub qk_norm: Option<(Array1<f32>, Array1<f32>)>,
    /// Logits of attention sinks, \[heads\]: each is one more term of a head's softmax, and writes nothing.
    pub sinks: Option<Array1<f32>>,
    /// As `attention_norm`.
    pub mlp_norm: NormWeights,
    /// If the model has them.
    pub write_norms: Option<WriteNorms>,
    pub mlp: MlpWeights,
}

/// γ of the norms on what a block's parts write, \[d_model\] each.
pub struct WriteNorms {
    pub attention: Array1<f32>,
    pub mlp: Array1<f32>,
}

/// A projection x W + b.
pub struct Linear {
    /// \[in, out\]
    pub w: Array2<f32>,
    /// \[out\]
    pub b: Option<Array1<f32>>,
}

/// What is before the first and after the last block.
pub struct Ends {
    /// W_E, \[vocab, d_model\].
    pub embedding: Array2<f32>,
    /// Learned positions, \[positions, d_model\], the first row for position 0.
    pub positions: Option<Array2<f32>>,
    pub final_norm: NormWeights,
    /// W_Uᵀ, \[vocab, d_model\]; `None` when tied to the embedding.
    pub unembedding: Option<Array2<f32>>,
    /// b_U, \[vocab\].
    pub unembedding_bias: Option<Array1<f32>>,
}
