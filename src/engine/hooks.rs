//! The inputs and outputs of the graphs, with TransformerLens names where it has one.

use std::borrow::Cow;

use anyhow::{Context, Result};
use ort::value::DynValue;

/// A tensor at the boundary of a graph. Shapes: B runs, P directions that are broadcast over them (P = B or 1),
/// S positions, D = d_model, H heads, M neurons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookPoint {
    /// The stream before a block, [B, S, D].
    ResidPre,
    /// Each head's mixed values before W_O, [B, S, H · d_head].
    HookZ,
    /// What attention gives before the norm on what it writes, b_O' included, [B, S, D].
    AttnLinear,
    /// The scale of that norm, [B, S].
    AttnWriteScale,
    /// What attention adds to the stream, b_O' included, [B, S, D].
    AttnOut,
    /// The stream with attention added, [B, S, D].
    ResidMid,
    /// The neurons' activations before W_out, [B, S, M]; of a mixture of experts, those of the chosen experts, with the
    /// experts' weights.
    MlpPost,
    /// The chosen experts, in the order of their neurons, [B, S, K].
    ExpertIndices,
    /// What the biases of the chosen experts write · u, with the experts' weights, [B, S].
    ExpertBiasEffect,
    /// The scale of the norm on what the MLP writes, [B, S].
    MlpWriteScale,
    /// What the MLP adds to the stream, its bias included, [B, S, D].
    MlpOut,
    /// The stream after a block, [B, S, D].
    ResidPost,
    /// The scale of the final norm, [B, S].
    FinalScale,

    /// The stream at any place, [B, S, D].
    Resid,
    /// The stream of the clean run at the same place, [P, S, D].
    CleanResid,
    /// The stream with one head's z replaced, [B, S, D].
    Ablated,
    /// Token ids, [B, S].
    Tokens,
    /// 0, 1, … S − 1 in every row, [B, S].
    Positions,
    /// The token whose logit is measured at each position, [P, S].
    Targets,
    /// Which position attends to which, added to the scores, [S, S].
    Mask,

    /// u = γ ⊙ Ŵ\[target\], [P, S, D].
    U,
    /// W_O u of a layer's heads, [P, S, H · d_head].
    V,
    /// W_out u of the neurons, [P, S, M].
    W,
    /// b_O' · u of every layer, [P, S, layers].
    AttentionBias,
    /// k, the part of the logit that no component writes, [P, S].
    Constant,
    /// Each head's output · u, [B, S, H].
    HeadEffects,
    /// The MLP's output · u, [B, S].
    MlpEffect,
    /// The stream · u, [B, S].
    Dot,
    /// What each head writes to the stream, [B, S, H, D].
    HeadOutputs,

    /// Which components are held where, [P, S, H] or [P, S].
    Held,
    /// The z that held heads keep, [P, S, H · d_head].
    HeldZ,
    /// The output that a held MLP keeps, [P, S, D].
    HeldMlpOut,

    /// Replacement z less clean z of one head, [B, S, d_head].
    ZChange,
    /// Which head each run replaces, \[B\].
    Head,
    /// What is added along the projection's direction, in units of its dot product with it, [B, S].
    Along,
    /// What a projection read of the clean stream, before its bias, [P, S, N].
    CleanRead(Projection),
    /// What it read of what attention wrote in the clean run, if that is normed, [P, S, N]: without the norm's scale.
    CleanAttnRead(Projection),
    /// The clean scale of the norm on what attention writes, [P, S].
    CleanAttnWriteScale,
    /// W_O γ W of every head, [H, d_head, N].
    OfHeads(Projection),

    /// The model's logits, [B · S, vocab].
    Logits,
    /// Log-probability of the targets, [B · S, 1].
    LogProb,
    /// Σ p (log p − log q) of two distributions, [B · S].
    Kl,

    /// The input of a graph that is no part of a model.
    X,
    /// Its output.
    Y,
}

/// A projection that reads the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Projection {
    Q,
    K,
    V,
    In,
    Gate,
}

impl Projection {
    /// The name of what it gives, inside a graph.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q => "q",
            Self::K => "k",
            Self::V => "v_heads",
            Self::In => "pre_linear",
            Self::Gate => "pre",
        }
    }
}

impl HookPoint {
    /// The tensor's name in the ONNX files.
    pub fn name(self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::ResidPre => "resid_pre",
            Self::HookZ => "hook_z",
            Self::AttnLinear => "attn_linear",
            Self::AttnWriteScale => "ln1_post.scale",
            Self::AttnOut => "attn_out",
            Self::ResidMid => "resid_mid",
            Self::MlpPost => "mlp_post",
            Self::ExpertIndices => "expert_indices",
            Self::ExpertBiasEffect => "expert_bias_effect",
            Self::MlpWriteScale => "ln2_post.scale",
            Self::MlpOut => "mlp_out",
            Self::ResidPost => "resid_post",
            Self::FinalScale => "ln_final.scale",
            Self::Resid => "resid",
            Self::CleanResid => "clean_resid",
            Self::Ablated => "ablated",
            Self::Tokens => "tokens",
            Self::Positions => "positions",
            Self::Targets => "targets",
            Self::Mask => "mask",
            Self::U => "u",
            Self::V => "v",
            Self::W => "w",
            Self::AttentionBias => "attention_bias",
            Self::Constant => "constant",
            Self::HeadEffects => "head_effects",
            Self::MlpEffect => "mlp_effect",
            Self::Dot => "dot",
            Self::HeadOutputs => "head_outputs",
            Self::Held => "held",
            Self::HeldZ => "held_z",
            Self::HeldMlpOut => "held_mlp_out",
            Self::ZChange => "z_change",
            Self::Head => "head",
            Self::Along => "along",
            Self::CleanRead(projection) => return format!("{}_of_clean", projection.name()).into(),
            Self::CleanAttnRead(projection) => return format!("{}_of_clean_attn_out", projection.name()).into(),
            Self::CleanAttnWriteScale => "ln1_post.scale_of_clean",
            Self::OfHeads(projection) => return format!("{}_of_heads", projection.name()).into(),
            Self::Logits => "logits",
            Self::LogProb => "log_prob",
            Self::Kl => "kl",
            Self::X => "x",
            Self::Y => "y",
        })
    }
}

/// What one call of a graph gave, by hook point.
pub struct Outputs(Vec<(HookPoint, DynValue)>);

impl Outputs {
    pub(crate) fn new(values: Vec<(HookPoint, DynValue)>) -> Self {
        Self(values)
    }

    /// Takes the tensor at `point`.
    ///
    /// # Errors
    /// If it was not asked for, or was taken before.
    pub fn take(&mut self, point: HookPoint) -> Result<DynValue> {
        let found = self.0.iter().position(|(at, _)| *at == point);
        let found = found.with_context(|| format!("{} was not requested from the graph", point.name()))?;
        Ok(self.0.swap_remove(found).1)
    }

    /// Takes the tensor at `point` if it was asked for.
    pub fn take_if(&mut self, asked: bool, point: HookPoint) -> Result<Option<DynValue>> {
        asked.then(|| self.take(point)).transpose()
    }
}
