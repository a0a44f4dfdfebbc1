//! GPT-OSS (`GptOssForCausalLM`): as Llama, with attention sinks, windows in every second layer, and mixtures of experts
//! whose gates are clamped. Experts are published in MXFP4 (OCP Microscaling Formats 1.0, 5.4): 4-bit floats in blocks of 32
//! with a power of two each.

use anyhow::{Result, ensure};
use ndarray::{Array3, Axis, s};
use selfrepair_core::memory::try_with_capacity;

use super::common::{linear, plain};
use super::experts::{mix, sizes};
use super::keys::{Kind, ROTARY, SIZES};
use super::rotary::{RotaryKeys, rotary};
use super::{Family, llama, windows};
use crate::architecture::{Architecture, Biases, LayerWeights, Linear, Norm};
use crate::checkpoint::Checkpoint;
use crate::mlp::{ClampedGate, ExpertWeighting, ExpertWeights, Mlp, MlpWeights};

/// Of configurations that say nothing.
const YARN: &str = r#"{"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
    "original_max_position_embeddings": 4096}"#;

pub const FAMILY: Family = Family {
    keys: &[
        SIZES,
        ROTARY,
        &[
            ("max_position_embeddings", Kind::Whole(131_072)),
            ("num_key_value_heads", Kind::Whole(8)),
            ("head_dim", Kind::Whole(64)),
            ("rms_norm_eps", Kind::Float(1e-5)),
            ("attention_bias", Kind::Flag(true)),
            ("sliding_window", Kind::MaybeWhole(Some(128))),
            ("layer_types", Kind::Any),
            ("num_local_experts", Kind::Whole(128)),
            ("num_experts_per_tok", Kind::Whole(4)),
            ("swiglu_alpha", Kind::Float(1.702)),
            ("swiglu_limit", Kind::Float(7.0)),
            ("tie_word_embeddings", Kind::Flag(false)),
            ("quantization_config", Kind::MaybeObject),
        ],
    ],
    // transformers checks the activation, and has another.
    unused: &[
        ("hidden_act", Kind::Text("silu")),
        ("initializer_range", Kind::Float(0.02)),
        ("attention_dropout", Kind::Number),
        ("output_router_logits", Kind::Flag(false)),
        ("router_aux_loss_coef", Kind::Float(0.001)),
    ],
    spellings: &[("num_experts", "num_local_experts")],
    classes: &["GptOssForCausalLM", "GptOssModel"],
    architecture,
    layer,
    ends: llama::ends,
};

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let mut a = plain(c, c.size("intermediate_size")?)?;
    a.norm = Norm::Rms;
    a.norm_eps = c.epsilon("rms_norm_eps")?;
    a.rotary = Some(rotary(c, a.d_head, &RotaryKeys { scaling: Some(YARN), ..RotaryKeys::whole(150_000.0) })?);
    a.gated = true;
    a.sinks = true;
    let bias = super::common::flag(c, "attention_bias")?;
    a.biases = Biases { qkv: bias, attention_out: bias, mlp_in: true, mlp_out: true, ..Biases::default() };
    a.dtype = c.dtype("model.layers.0.self_attn.o_proj.weight")?;
    windows::alternating(c, &mut a, 2)?;
    let sizes = ["num_local_experts", "num_experts_per_tok", "intermediate_size"];
    mix(c, &mut a, sizes, ExpertWeighting::OfChosen)?;
    let number = |key: &str| super::common::multiplier(c, key);
    let clamped = ClampedGate { alpha: number("swiglu_alpha")?, limit: number("swiglu_limit")? };
    ensure!(clamped.limit >= 0.0, "`swiglu_limit` is {}; expected a number that is not negative", clamped.limit);
    a.experts.iter_mut().for_each(|experts| experts.clamped_gate = Some(clamped));
    let neurons = c.size("intermediate_size")?;
    let fills = |width: usize| c.key("quantization_config").is_null() || width.is_multiple_of(IN_BLOCK);
    ensure!(
        fills(a.d_model) && fills(neurons),
        "`hidden_size` is {} and `intermediate_size` {}; expected multiples of {IN_BLOCK}, as experts are stored in blocks \
         (`quantization_config`)",
        a.d_model,
        neurons
    );
    Ok(a)
}

/// The experts of a layer lie in \[experts, d_model, gate and other input by turns\] and \[experts, neurons, d_model\].
fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    let (d, (count, neurons)) = (a.d_model, sizes(a));
    let name = |rest: &str| format!("model.layers.{layer}.mlp.{rest}");
    let inputs = experts(c, &name("experts.gate_up_proj"), [count, d, 2 * neurons])?;
    let outputs = experts(c, &name("experts.down_proj"), [count, neurons, d])?;
    let input_biases = c.matrix(&name("experts.gate_up_proj_bias"), count, 2 * neurons)?;
    let output_biases = c.matrix(&name("experts.down_proj_bias"), count, d)?;
    let input = |e: usize, first: usize| Linear {
        w: inputs.slice(s![e, .., first..;2]).as_standard_layout().into_owned(),
        b: Some(input_biases.slice(s![e, first..;2]).to_owned()),
    };
    let expert = |e: usize| Mlp {
        gate: Some(input(e, 0)),
        up: input(e, 1),
        down: Linear {
            w: outputs.index_axis(Axis(0), e).to_owned(),
            b: Some(output_biases.index_axis(Axis(0), e).to_owned()),
        },
    };
    let router = linear(c, &name("router"), d, count, true)?;
    let experts = ExpertWeights { router, experts: (0..count).map(expert).collect(), shared: None };
    llama::layer_with(c, a, layer, MlpWeights::Experts(Box::new(experts)))
}

/// A matrix of all experts, \[experts, inputs, outputs\].
fn experts(c: &Checkpoint, name: &str, [count, inputs, outputs]: [usize; 3]) -> Result<Array3<f32>> {
    if c.key("quantization_config").is_null() {
        return c.cube(name, [count, inputs, outputs]);
    }
    let blocks = inputs / IN_BLOCK;
    let pairs = c.elements(&format!("{name}_blocks"), &[count, outputs, blocks, IN_BLOCK / 2])?;
    let exponents = c.elements(&format!("{name}_scales"), &[count, outputs, blocks])?;
    let mut values = try_with_capacity(count * outputs * inputs)?;
    for (pairs, exponent) in pairs.chunks_exact(IN_BLOCK / 2).zip(&exponents) {
        let scale = (exponent - BIAS).exp2();
        ensure!(scale.is_finite(), "`{name}_scales` has {exponent}, which stands for no number");
        values.extend(pairs.iter().flat_map(|&pair| [pair as u8 & 15, pair as u8 >> 4]).map(|bits| scale * fp4(bits)));
    }
    let by_output = Array3::from_shape_vec([count, outputs, inputs], values)?;
    Ok(by_output.permuted_axes([0, 2, 1]).as_standard_layout().into_owned())
}

/// Numbers of a block, and what is added to the exponent of its scale.
const IN_BLOCK: usize = 32;
const BIAS: f32 = 127.0;

/// A 4-bit float: sign, two bits of exponent, one of mantissa.
fn fp4(bits: u8) -> f32 {
    const MAGNITUDES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let magnitude = MAGNITUDES.get(usize::from(bits & 7)).copied().unwrap_or_default();
    if bits & 8 == 0 { magnitude } else { -magnitude }
}
