//! Apertus (`ApertusForCausalLM`): as Llama, with norms of queries and keys, and an MLP without a gate whose activation has
//! learned numbers.

use anyhow::{Result, ensure};

use super::common::{even_share, flag, linear, norm, plain};
use super::keys::{Kind, ROTARY, SIZES, UNUSED_BY_MOST};
use super::rotary::{RotaryKeys, rotary};
use super::{Family, llama};
use crate::architecture::{Architecture, Biases, LayerWeights, Norm, QkNorm};
use crate::checkpoint::Checkpoint;
use crate::mlp::{Mlp, MlpWeights, Xielu};

/// Of configurations that say nothing.
const LLAMA3: &str = r#"{"rope_type": "llama3", "rope_theta": 12000000.0, "factor": 8.0,
    "original_max_position_embeddings": 8192, "low_freq_factor": 1.0, "high_freq_factor": 4.0}"#;

pub const FAMILY: Family = Family {
    keys: &[
        SIZES,
        ROTARY,
        &[
            ("max_position_embeddings", Kind::Whole(65_536)),
            ("num_key_value_heads", Kind::MaybeWhole(None)),
            ("head_dim", Kind::GivenWhole),
            ("hidden_act", Kind::Text("xielu")),
            ("rms_norm_eps", Kind::Float(1e-5)),
            ("attention_bias", Kind::Flag(false)),
            ("tie_word_embeddings", Kind::Flag(false)),
        ],
    ],
    unused: UNUSED_BY_MOST,
    spellings: &[],
    classes: &["ApertusForCausalLM", "ApertusModel"],
    architecture,
    layer,
    ends: llama::ends,
};

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let mut a = plain(c, c.size("intermediate_size")?)?;
    let share = even_share(c, "hidden_size", "num_attention_heads")?;
    ensure!(a.d_head == share, "`head_dim` is {}; expected `hidden_size` / `num_attention_heads`, {share}", a.d_head);
    a.norm = Norm::Rms;
    a.norm_eps = c.epsilon("rms_norm_eps")?;
    a.rotary = Some(rotary(c, a.d_head, &RotaryKeys { scaling: Some(LLAMA3), ..RotaryKeys::whole(12_000_000.0) })?);
    a.qk_norm = Some(QkNorm::ByHead);
    let activation = c.key("hidden_act");
    ensure!(activation == "xielu", "`hidden_act` is {activation}; only xielu is supported for `apertus`");
    let bias = flag(c, "attention_bias")?;
    a.biases = Biases { qkv: bias, attention_out: bias, ..Biases::default() };
    a.dtype = c.dtype("model.layers.0.self_attn.o_proj.weight")?;
    Ok(a)
}

fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    let name = |rest: &str| format!("model.layers.{layer}.{rest}");
    let mlp = Mlp {
        gate: None,
        up: linear(c, &name("mlp.up_proj"), a.d_model, a.d_mlp, false)?,
        down: linear(c, &name("mlp.down_proj"), a.d_mlp, a.d_model, false)?,
    };
    let mlp = MlpWeights::Xielu(Box::new(mlp), xielu(c, &name("mlp.act_fn"))?);
    let norms = [norm(c, a, &name("attention_layernorm"))?, norm(c, a, &name("feedforward_layernorm"))?];
    llama::block_with(c, a, layer, norms, mlp)
}

/// softplus of what is stored is α_p, and α_n less β. Each tensor has one number.
fn xielu(c: &Checkpoint, name: &str) -> Result<Xielu> {
    let number = |what: &str, shape: &[usize]| -> Result<f64> {
        Ok(c.elements(&format!("{name}.{what}"), shape)?.into_iter().map(f64::from).sum())
    };
    let softplus = |x: f64| x.exp().ln_1p();
    let (beta, epsilon) = (number("beta", &[])?, number("eps", &[])?);
    Ok(Xielu {
        alpha_p: softplus(number("alpha_p", &[1])?) as f32,
        alpha_n: (beta + softplus(number("alpha_n", &[1])?)) as f32,
        beta: beta as f32,
        epsilon: epsilon as f32,
    })
}
