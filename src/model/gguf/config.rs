//! GGUF metadata, translated to the keys of Hugging Face's `config.json`.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value as Json, json};

use super::GgufFile;
use crate::architecture::MOST_LAYERS;

/// Factors by which single rotary frequencies are divided (how Llama 3.1's scaling is stored).
pub const ROPE_FACTORS: &str = "rope_freqs.weight";

impl GgufFile {
    /// The configuration that the family files read.
    ///
    /// # Errors
    /// If the architecture is none we know, a size is missing, or something would change the numbers that we do not
    /// undo.
    pub fn config(&self) -> Result<Json> {
        let arch = self.architecture()?;
        let key = |rest: &str| format!("{arch}.{rest}");
        let size = |rest: &str| {
            let missing = || format!("{}: the metadata has no whole number `{}`", self.path().display(), key(rest));
            self.integer(&key(rest))?.with_context(missing)
        };
        for unsupported in ["expert_count", "attention.max_alibi_bias", "rope.scaling.attn_factor"] {
            let value = self.optional(&key(unsupported));
            ensure!(value.is_none(), "{}: `{}` is not supported yet", self.path().display(), key(unsupported));
        }
        let (d_model, heads) = (size("embedding_length")?, size("attention.head_count")?);
        let layers = size("block_count")?;
        ensure!(layers <= MOST_LAYERS as u64, "{}: `{}` is {layers}", self.path().display(), key("block_count"));
        ensure!(heads > 0, "{}: `{}` is 0", self.path().display(), key("attention.head_count"));
        let d_head = self.integer(&key("attention.key_length"))?.unwrap_or(d_model / heads);
        ensure!(
            d_head > 0,
            "{}: a stream of width {d_model} cannot be split among {heads} heads",
            self.path().display()
        );
        let rotary_dims = self.integer(&key("rope.dimension_count"))?.unwrap_or(d_head);
        ensure!(
            rotary_dims == d_head || ["gpt2", "gptneox", "phi2", "stablelm"].contains(&arch),
            "{}: `{}` is {rotary_dims} of {d_head}; only whole heads are rotated in `{arch}`",
            self.path().display(),
            key("rope.dimension_count")
        );
        let rope_base = self.float(&key("rope.freq_base"))?.unwrap_or(10_000.0);
        let embedding = self.content.tensor_infos.get("token_embd.weight");
        let embedding = embedding
            .with_context(|| format!("{}: the tensor `token_embd.weight` is missing", self.path().display()))?;
        let norm_eps = self
            .float(&key("attention.layer_norm_rms_epsilon"))?
            .or(self.float(&key("attention.layer_norm_epsilon"))?)
            .unwrap_or(1e-5);
        let special = |name: &str| self.integer(&format!("tokenizer.ggml.{name}_token_id"));
        let mut config = json!({
            "model_type": model_type(arch).with_context(|| self.path().display().to_string())?,
            "num_hidden_layers": layers,
            "hidden_size": d_model,
            "num_attention_heads": heads,
            "num_key_value_heads": self.integer(&key("attention.head_count_kv"))?.unwrap_or(heads),
            "head_dim": d_head,
            "intermediate_size": size("feed_forward_length")?,
            // From the tensor, because not every file carries `vocab_size`.
            "vocab_size": embedding.shape.dims().first().copied().unwrap_or(0),
            "max_position_embeddings": size("context_length")?,
            "rms_norm_eps": norm_eps,
            "layer_norm_eps": norm_eps,
            "layer_norm_epsilon": norm_eps,
            "rope_theta": rope_base,
            "rotary_emb_base": rope_base,
            "rope_scaling": self.rope_scaling(arch)?,
            "partial_rotary_factor": rotary_dims as f64 / d_head as f64,
            "rotary_pct": rotary_dims as f64 / d_head as f64,
            "sliding_window": self.integer(&key("attention.sliding_window"))?,
            "clip_qkv": self.float(&key("attention.clamp_kqv"))?,
            "hidden_act": "silu",
            "attention_bias": self.stores("blk.0.attn_output.bias"),
            "mlp_bias": self.stores("blk.0.ffn_down.bias"),
            "use_qkv_bias": self.stores("blk.0.attn_q.bias"),
            "tie_word_embeddings": !self.stores("output.weight"),
            "bos_token_id": special("bos")?,
            "eos_token_id": special("eos")?,
        });
        self.add_peculiarities(arch, &mut config)?;
        Ok(config)
    }

    fn add_peculiarities(&self, arch: &str, config: &mut Json) -> Result<()> {
        match arch {
            "gpt2" => {
                for (ours, theirs) in [
                    ("n_layer", "num_hidden_layers"),
                    ("n_embd", "hidden_size"),
                    ("n_head", "num_attention_heads"),
                    ("n_inner", "intermediate_size"),
                ] {
                    config[ours] = config[theirs].clone();
                }
                config["activation_function"] = json!("gelu_new");
            }
            "gptneox" => {
                config["use_parallel_residual"] = json!(self.flag("gptneox.use_parallel_residual", true)?);
                config["hidden_act"] = json!("gelu");
            }
            "phi2" => config["hidden_act"] = json!("gelu_new"),
            "gemma" => config["hidden_act"] = json!("gelu_pytorch_tanh"),
            // Only a model whose MLP reads a norm of its own has that norm.
            "stablelm" => config["use_parallel_residual"] = json!(!self.stores("blk.0.ffn_norm.weight")),
            "smollm3" => {
                // llama.cpp has it in the code: every fourth layer has no positions.
                let layers = config["num_hidden_layers"].as_u64().unwrap_or(0);
                config["no_rope_layers"] = (0..layers).map(|l| u64::from((l + 1) % 4 != 0)).collect();
            }
            _ => {}
        }
        Ok(())
    }

    fn rope_scaling(&self, arch: &str) -> Result<Json> {
        // The second key is what files had before the first.
        let factor =
            self.float(&format!("{arch}.rope.scaling.factor"))?.or(self.float(&format!("{arch}.rope.scale_linear"))?);
        let kind = match self.optional(&format!("{arch}.rope.scaling.type")) {
            Some(value) => value.to_string().map(String::as_str).unwrap_or("unknown"),
            None if factor.is_some_and(|f| f != 1.0) => "linear",
            None => "none",
        };
        match kind {
            "none" if self.stores(ROPE_FACTORS) && factor.is_none_or(|f| f == 1.0) => {
                let factors = self.stored(ROPE_FACTORS)?.flatten_all()?.to_vec1::<f32>()?;
                Ok(json!({ "rope_type": "by_frequency", "factors": factors }))
            }
            "linear" | "none" if self.stores(ROPE_FACTORS) => {
                bail!(
                    "{}: rotary factors together with the rope scaling `{kind}` are not supported",
                    self.path().display()
                )
            }
            "linear" => Ok(json!({ "rope_type": "linear", "factor": factor.unwrap_or(1.0) })),
            "none" => Ok(Json::Null),
            other => bail!("{}: the rope scaling `{other}` is not supported yet", self.path().display()),
        }
    }
}

/// GGUF architectures, each with Hugging Face's `model_type`.
pub const ARCHITECTURES: [(&str, &str); 10] = [
    ("gemma", "gemma"),
    ("gpt2", "gpt2"),
    ("gptneox", "gpt_neox"),
    ("llama", "llama"),
    ("olmo", "olmo"),
    ("phi2", "phi"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("smollm3", "smollm3"),
    ("stablelm", "stablelm"),
];

/// Hugging Face's name of a GGUF architecture.
fn model_type(arch: &str) -> Result<&'static str> {
    let Some((_, model_type)) = ARCHITECTURES.iter().find(|(name, _)| *name == arch) else {
        let names: Vec<&str> = ARCHITECTURES.iter().map(|(name, _)| *name).collect();
        bail!("the GGUF architecture `{arch}` is not supported yet; supported: {}", names.join(", "));
    };
    Ok(model_type)
}
