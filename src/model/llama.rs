//! Llama, SmolLM, TinyLlama and others of `model_type` "llama": RMS norms, rotary positions, grouped-query heads,
//! gated SiLU MLP, no biases, serial residual. Hugging Face: `LlamaForCausalLM`.

use anyhow::{Result, bail, ensure};
use ndarray::Array2;

use super::architecture::{Architecture, Ends, LayerWeights};
use super::checkpoint::Checkpoint;

pub fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let (d_model, heads) = (c.size("hidden_size")?, c.size("num_attention_heads")?);
    let kv_heads = c.optional_size("num_key_value_heads")?.unwrap_or(heads);
    let d_head = match c.optional_size("head_dim")? {
        Some(n) => n,
        None => d_model / heads,
    };
    ensure!(heads % kv_heads == 0, "{heads} heads cannot share {kv_heads} key-value heads evenly");
    ensure!(d_head % 2 == 0, "rotary positions need an even d_head, not {d_head}");
    refuse(c, "attention_bias", |v| v.as_bool() == Some(true))?;
    refuse(c, "mlp_bias", |v| v.as_bool() == Some(true))?;
    refuse(c, "rope_scaling", |v| v.get("rope_type").is_some_and(|t| t != "default"))?;
    refuse(c, "rope_parameters", |v| v.get("rope_type").is_some_and(|t| t != "default"))?;
    refuse(c, "hidden_act", |v| v != "silu")?;
    // transformers 5 writes the base into `rope_parameters`, earlier ones beside the other keys.
    let rotary_base = c.config()["rope_parameters"]["rope_theta"].as_f64();
    Ok(Architecture {
        family: "llama".into(),
        layers: c.size("num_hidden_layers")?,
        heads,
        kv_heads,
        d_model,
        d_head,
        d_mlp: c.size("intermediate_size")?,
        vocab: c.size("vocab_size")?,
        context: c.size("max_position_embeddings")?,
        norm_eps: c.number("rms_norm_eps", 1e-6)? as f32,
        rotary_base: match rotary_base {
            Some(base) => base,
            None => c.number("rope_theta", 10_000.0)?,
        },
        dtype: c.dtype("model.layers.0.mlp.down_proj.weight")?,
    })
}

/// A variation of the family that would change the numbers is an error, never ignored.
fn refuse(c: &Checkpoint, key: &str, differs: impl Fn(&serde_json::Value) -> bool) -> Result<()> {
    let value = &c.config()[key];
    if !value.is_null() && differs(value) {
        bail!("the configuration has `{key}` = {value}, which is not supported yet for the llama family");
    }
    Ok(())
}

pub fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    let name = |rest: &str| format!("model.layers.{layer}.{rest}.weight");
    let kv = a.kv_heads * a.d_head;
    Ok(LayerWeights {
        attention_norm: c.vector(&name("input_layernorm"), a.d_model)?,
        w_q: c.linear(&name("self_attn.q_proj"), a.d_model, a.heads * a.d_head)?,
        w_k: c.linear(&name("self_attn.k_proj"), a.d_model, kv)?,
        w_v: c.linear(&name("self_attn.v_proj"), a.d_model, kv)?,
        mlp_norm: c.vector(&name("post_attention_layernorm"), a.d_model)?,
        w_gate: c.linear(&name("mlp.gate_proj"), a.d_model, a.d_mlp)?,
        w_in: c.linear(&name("mlp.up_proj"), a.d_model, a.d_mlp)?,
        w_out: c.linear(&name("mlp.down_proj"), a.d_mlp, a.d_model)?,
    })
}

pub fn w_o(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<Array2<f32>> {
    c.linear(&format!("model.layers.{layer}.self_attn.o_proj.weight"), a.heads * a.d_head, a.d_model)
}

pub fn ends(c: &Checkpoint, a: &Architecture) -> Result<Ends> {
    let head = "lm_head.weight";
    let tied = c.config()["tie_word_embeddings"].as_bool().unwrap_or(!c.has(head));
    Ok(Ends {
        embedding: c.matrix("model.embed_tokens.weight", a.vocab, a.d_model)?,
        final_norm: c.vector("model.norm.weight", a.d_model)?,
        unembedding: if tied { None } else { Some(c.matrix(head, a.vocab, a.d_model)?) },
    })
}
