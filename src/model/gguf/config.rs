//! GGUF metadata, translated to the keys of Hugging Face's `config.json`.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value as Json, json};

use super::{GgufFile, Value};
use crate::architecture::MOST_LAYERS;

/// Factors by which single rotary frequencies are divided (how Llama 3.1's scaling is stored).
pub const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The same of LongRoPE: for prompts longer than the original context, and for others.
pub const LONG_ROPE_FACTORS: [&str; 2] = ["rope_factors_long.weight", "rope_factors_short.weight"];

/// Keys that change the numbers, each with the architectures in which they are read. They are refused in others.
const SPECIAL: [(&str, &[&str]); 14] = [
    ("attention.clamp_kqv", &["olmo"]),
    ("attention.max_alibi_bias", &["mpt"]),
    ("attention.scale", &["granite"]),
    ("attention.sliding_window_pattern", &["gemma2", "gemma3"]),
    ("attention.temperature_length", &[]),
    ("attention.temperature_scale", &[]),
    ("attn_logit_softcapping", &["gemma2"]),
    ("embedding_scale", &["granite"]),
    ("expert_count", &[]),
    ("final_logit_softcapping", &["gemma2", "gemma3"]),
    ("logit_scale", &["command-r", "granite"]),
    ("residual_scale", &["granite"]),
    ("rope.freq_base_swa", &["gemma3"]),
    ("rope.scaling.attn_factor", &["phi3"]),
];

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
        for (special, readers) in SPECIAL {
            let is_read = self.optional(&key(special)).is_none() || readers.contains(&arch);
            ensure!(is_read, "{}: `{}` is not supported yet", self.path().display(), key(special));
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
            rotary_dims == d_head || ["gpt2", "gptneox", "phi2", "phi3", "stablelm"].contains(&arch),
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
            // 0 is none.
            "sliding_window": self.integer(&key("attention.sliding_window"))?.filter(|&window| window > 0),
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
        let key = |rest: &str| format!("{arch}.{rest}");
        match arch {
            "bloom" => self.check_shape(arch, config, true)?,
            "command-r" => {
                config["use_qk_norm"] = json!(self.stores("blk.0.attn_q_norm.weight"));
                // llama.cpp takes a missing scale, and 0, for none.
                config["logit_scale"] = json!(self.scale(&key("logit_scale"))?.unwrap_or(1.0));
            }
            "falcon" => {
                self.check_shape(arch, config, false)?;
                // With one key-value head, the three layouts of Falcon's fused matrix that GGUF files can hold are one.
                config["new_decoder_architecture"] = json!(true);
                config["num_ln_in_parallel_attn"] = json!(if self.stores("blk.0.attn_norm_2.weight") { 2 } else { 1 });
                config["num_kv_heads"] = config["num_key_value_heads"].clone();
                config["ffn_hidden_size"] = config["intermediate_size"].clone();
                if let Some(config) = config.as_object_mut() {
                    config.remove("head_dim");
                }
            }
            "gemma2" | "gemma3" => self.add_of_gemma(arch, config)?,
            "granite" => {
                for (theirs, ours) in [
                    ("embedding_scale", "embedding_multiplier"),
                    ("residual_scale", "residual_multiplier"),
                    ("logit_scale", "logits_scaling"),
                ] {
                    config[ours] = json!(self.scale(&key(theirs))?.unwrap_or(1.0));
                }
                let d_head = config["head_dim"].as_f64().unwrap_or(1.0);
                config["attention_multiplier"] =
                    json!(self.scale(&key("attention.scale"))?.unwrap_or(d_head.sqrt().recip()));
                // llama.cpp then leaves positions out.
                let positions = key("rope.scaling.finetuned");
                ensure!(self.flag(&positions, true)?, self.wrong(&positions, "true"));
            }
            "mpt" => {
                self.check_shape(arch, config, true)?;
                let alibi = key("attention.max_alibi_bias");
                ensure!(self.float(&alibi)? == Some(8.0), self.wrong(&alibi, "8"));
                config["max_seq_len"] = config["max_position_embeddings"].clone();
            }
            "olmo2" => ensure!(
                config["sliding_window"].is_null(),
                "{}: `{}` (OLMo 3) is not supported yet",
                self.path().display(),
                key("attention.sliding_window")
            ),
            "phi3" => {
                let original = self.integer(&key("rope.scaling.original_context_length"))?;
                config["original_max_position_embeddings"] =
                    original.map_or(config["max_position_embeddings"].clone(), |length| json!(length));
            }
            "starcoder2" => {
                config["hidden_act"] = json!("gelu_pytorch_tanh");
                config["norm_epsilon"] = config["layer_norm_eps"].clone();
                config["use_bias"] = config["use_qkv_bias"].clone();
            }
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

    /// Of families whose heads share the width of the stream and, if `four`, whose MLPs are four times as wide.
    fn check_shape(&self, arch: &str, config: &Json, four: bool) -> Result<()> {
        let size = |key: &str| config[key].as_u64().unwrap_or(0);
        let (d_model, heads, d_mlp) = (size("hidden_size"), size("num_attention_heads"), size("intermediate_size"));
        let key = format!("{arch}.attention.key_length");
        let expected = format!("{heads} heads that share a width of {d_model}");
        ensure!(self.integer(&key)?.is_none_or(|d_head| d_head * heads == d_model), self.wrong(&key, &expected));
        let (key, expected) = (format!("{arch}.feed_forward_length"), 4 * d_model);
        ensure!(!four || d_mlp == expected, self.wrong(&key, &format!("{expected}, 4 times the width of the stream")));
        Ok(())
    }

    /// Gemma 2 and 3: windows by layer, soft-caps, the scale of scores, which llama.cpp knows by the number of layers, and
    /// the positions of Gemma 3.
    fn add_of_gemma(&self, arch: &str, config: &mut Json) -> Result<()> {
        let key = |rest: &str| format!("{arch}.{rest}");
        let size = |config: &Json, name: &str| config[name].as_u64().unwrap_or(0);
        let (layers, d_head) = (size(config, "num_hidden_layers"), size(config, "head_dim"));
        let (layers_of_27b, period) = if arch == "gemma2" { (46, 2) } else { (62, 6) };
        config["query_pre_attn_scalar"] = json!(if layers == layers_of_27b {
            size(config, "hidden_size") / size(config, "num_attention_heads").max(1)
        } else {
            d_head
        });
        for name in ["attn_logit_softcapping", "final_logit_softcapping"] {
            if let Some(cap) = self.float(&key(name))? {
                config[name] = json!(cap);
            }
        }
        if arch == "gemma2" && self.optional(&key("attention.sliding_window")).is_none() {
            config["sliding_window"] = json!(4096);
        }
        let slides = match config["sliding_window"] {
            Json::Null => vec![false; layers as usize],
            _ => self.sliding_layers(&key("attention.sliding_window_pattern"), layers, period)?,
        };
        config["layer_types"] =
            slides.iter().map(|&slides| if slides { "sliding_attention" } else { "full_attention" }).collect();
        if arch == "gemma3" {
            let mut full = match config["rope_scaling"].take() {
                Json::Object(scaling) => scaling,
                _ => Map::new(),
            };
            full.insert("rope_theta".into(), config["rope_theta"].clone());
            let base = self.float(&key("rope.freq_base_swa"))?.unwrap_or(10_000.0);
            let sliding = json!({ "rope_type": "default", "rope_theta": base });
            config["rope_parameters"] = json!({ "full_attention": full, "sliding_attention": sliding });
        }
        Ok(())
    }

    /// Which layers have a window: by a period, whose last layer has none, or by a list.
    fn sliding_layers(&self, key: &str, layers: u64, period: u64) -> Result<Vec<bool>> {
        if let Some(Value::Array(list)) = self.optional(key) {
            let slides = |value: &Value| match value {
                Value::Bool(slides) => Some(*slides),
                Value::U32(n) => Some(*n != 0),
                Value::I32(n) => Some(*n != 0),
                _ => None,
            };
            let list: Option<Vec<bool>> = list.iter().map(slides).collect();
            let list = list.filter(|list| list.len() as u64 == layers);
            return list.with_context(|| self.wrong(key, &format!("true or false for each of {layers} layers")));
        }
        let period = self.integer(key)?.unwrap_or(period);
        Ok((0..layers).map(|layer| period == 0 || layer % period < period - 1).collect())
    }

    /// A factor; `None` if it is missing or 0, which llama.cpp takes for none.
    fn scale(&self, key: &str) -> Result<Option<f64>> {
        Ok(self.float(key)?.filter(|&scale| scale != 0.0))
    }

    /// Phi-3's divisors of frequencies, for prompts within the original context and for longer ones.
    fn long_rope(&self, arch: &str) -> Result<Json> {
        let factors = |which: &str| -> Result<Vec<f32>> { Ok(self.stored(which)?.flatten_all()?.to_vec1::<f32>()?) };
        let [long, short] = LONG_ROPE_FACTORS;
        Ok(json!({
            "rope_type": "longrope",
            "long_factor": factors(long)?,
            "short_factor": factors(short)?,
            "attention_factor": self.float(&format!("{arch}.rope.scaling.attn_factor"))?.unwrap_or(1.0),
        }))
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
        let is_long = arch == "phi3" && LONG_ROPE_FACTORS.iter().any(|factors| self.stores(factors));
        let attention_factor = format!("{arch}.rope.scaling.attn_factor");
        ensure!(
            is_long || self.optional(&attention_factor).is_none(),
            "{}: `{attention_factor}` is not supported without rotary factors",
            self.path().display()
        );
        match kind {
            "none" | "longrope" if is_long && factor.is_none_or(|f| f == 1.0) => self.long_rope(arch),
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
pub const ARCHITECTURES: [(&str, &str); 20] = [
    ("bloom", "bloom"),
    ("command-r", "cohere"),
    ("falcon", "falcon"),
    ("gemma", "gemma"),
    ("gemma2", "gemma2"),
    ("gemma3", "gemma3_text"),
    ("gpt2", "gpt2"),
    ("gptneox", "gpt_neox"),
    ("granite", "granite"),
    ("llama", "llama"),
    ("mpt", "mpt"),
    ("olmo", "olmo"),
    ("olmo2", "olmo2"),
    ("phi2", "phi"),
    ("phi3", "phi3"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("smollm3", "smollm3"),
    ("stablelm", "stablelm"),
    ("starcoder2", "starcoder2"),
];

/// Hugging Face's name of a GGUF architecture.
fn model_type(arch: &str) -> Result<&'static str> {
    let Some((_, model_type)) = ARCHITECTURES.iter().find(|(name, _)| *name == arch) else {
        let names: Vec<&str> = ARCHITECTURES.iter().map(|(name, _)| *name).collect();
        bail!("the GGUF architecture `{arch}` is not supported yet; supported: {}", names.join(", "));
    };
    Ok(model_type)
}
