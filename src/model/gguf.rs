//! GGUF files: tensors by Hugging Face's names, and metadata as a Hugging Face configuration.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result, bail, ensure};
use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};
use serde_json::json;

pub use candle_core::quantized::gguf_file::Value;

pub struct GgufFile {
    path: PathBuf,
    content: Content,
    reader: Mutex<BufReader<File>>,
}

impl GgufFile {
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let mut reader = BufReader::new(file);
        let content =
            Content::read(&mut reader).with_context(|| format!("{} is not a complete GGUF file", path.display()))?;
        Ok(Self { path: path.to_path_buf(), content, reader: Mutex::new(reader) })
    }

    pub fn metadata(&self, key: &str) -> Result<&Value> {
        let value = self.content.metadata.get(key);
        value.with_context(|| format!("{}: the GGUF metadata has no `{key}`", self.path.display()))
    }

    pub fn optional(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(key)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The metadata in the words of Hugging Face's `config.json`.
    pub fn config(&self) -> Result<serde_json::Value> {
        let architecture = self.metadata("general.architecture")?.to_string()?.clone();
        if architecture != "llama" {
            bail!(
                "{}: the GGUF architecture `{architecture}` is not supported yet; supported: llama",
                self.path.display()
            );
        }
        let int = |key: &str| -> Result<u64> {
            let key = format!("{architecture}.{key}");
            integer(self.metadata(&key)?).with_context(|| format!("{}: `{key}`", self.path.display()))
        };
        let float = |key: &str, default: f64| match self.optional(&format!("{architecture}.{key}")) {
            Some(value) => Ok::<f64, anyhow::Error>(value.to_f32()? as f64),
            None => Ok(default),
        };
        for unsupported in ["rope.scaling.type", "rope.scaling.factor", "expert_count"] {
            let key = format!("{architecture}.{unsupported}");
            ensure!(self.optional(&key).is_none(), "{}: `{key}` is not supported yet", self.path.display());
        }
        ensure!(
            !self.content.tensor_infos.contains_key("rope_freqs.weight"),
            "{}: scaled rotary frequencies (`rope_freqs.weight`) are not supported yet",
            self.path.display()
        );
        let embedding = self.content.tensor_infos.get("token_embd.weight");
        let embedding =
            embedding.with_context(|| format!("{}: the tensor `token_embd.weight` is missing", self.path.display()))?;
        let heads = int("attention.head_count")?;
        let token = |key: &str| self.optional(key).and_then(|v| integer(v).ok());
        Ok(json!({
            "model_type": "llama",
            "num_hidden_layers": int("block_count")?,
            "hidden_size": int("embedding_length")?,
            "num_attention_heads": heads,
            "num_key_value_heads": int("attention.head_count_kv").unwrap_or(heads),
            "head_dim": int("attention.key_length").ok(),
            "intermediate_size": int("feed_forward_length")?,
            // Written from the tensor, because not every file carries `vocab_size`.
            "vocab_size": embedding.shape.dims().first().copied().unwrap_or(0),
            "max_position_embeddings": int("context_length")?,
            "rms_norm_eps": float("attention.layer_norm_rms_epsilon", 1e-6)?,
            "rope_theta": float("rope.freq_base", 10_000.0)?,
            "hidden_act": "silu",
            "tie_word_embeddings": !self.content.tensor_infos.contains_key("output.weight"),
            "bos_token_id": token("tokenizer.ggml.bos_token_id"),
            "eos_token_id": token("tokenizer.ggml.eos_token_id"),
        }))
    }

    pub fn has(&self, name: &str) -> bool {
        gguf_name(name).is_some_and(|n| self.content.tensor_infos.contains_key(&n))
    }

    /// See [`super::Checkpoint::check_nothing_was_left_out`].
    pub fn check_nothing_was_left_out(&self, read: &BTreeSet<String>) -> Result<()> {
        let read: BTreeSet<String> = read.iter().filter_map(|name| gguf_name(name)).collect();
        let left: Vec<&String> = self.content.tensor_infos.keys().filter(|n| !read.contains(*n)).collect();
        ensure!(
            left.is_empty(),
            "{}: the file has tensors that a Llama does not have ({}); it is a variation that is not supported yet",
            self.path.display(),
            left.iter().take(3).map(|n| n.as_str()).collect::<Vec<_>>().join(", ")
        );
        Ok(())
    }

    pub fn dtype(&self, name: &str) -> Option<String> {
        let info = self.content.tensor_infos.get(&gguf_name(name)?)?;
        Some(format!("{:?}", info.ggml_dtype))
    }

    /// A tensor by its Hugging Face name, dequantised to float32, [out, in].
    pub fn tensor(&self, name: &str) -> candle_core::Result<Tensor> {
        let gguf = gguf_name(name).ok_or_else(|| candle_core::Error::Msg(format!("no GGUF name for `{name}`")))?;
        let mut reader = self.reader.lock().unwrap_or_else(|e| e.into_inner());
        let tensor = self.content.tensor(&mut *reader, &gguf, &Device::Cpu)?.dequantize(&Device::Cpu)?;
        let heads = match gguf.rsplit_once('.').map_or("", |(stem, _)| stem) {
            s if s.ends_with("attn_q") => "llama.attention.head_count",
            s if s.ends_with("attn_k") => "llama.attention.head_count_kv",
            _ => return Ok(tensor),
        };
        let heads = self.optional(heads).and_then(|v| integer(v).ok()).unwrap_or(0) as usize;
        unpermute(&tensor, heads)
    }
}

/// llama.cpp stores the rows of W_Q and W_K so that rotary pairs lie side by side; Hugging Face (and this program)
/// pairs the first half of a head with its second half. Source: `LlamaModel.permute` in llama.cpp's converter.
fn unpermute(tensor: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let (rows, columns) = tensor.dims2()?;
    if heads == 0 || rows % (2 * heads) != 0 {
        candle_core::bail!("{rows} rows cannot be split into {heads} heads");
    }
    tensor.reshape((heads, rows / heads / 2, 2, columns))?.transpose(1, 2)?.contiguous()?.reshape((rows, columns))
}

fn integer(value: &Value) -> Result<u64> {
    value.to_u64().or_else(|_| value.to_u32().map(u64::from)).context("expected a whole number")
}

/// `model.layers.3.mlp.up_proj.weight` → `blk.3.ffn_up.weight`.
fn gguf_name(name: &str) -> Option<String> {
    match name {
        "model.embed_tokens.weight" => return Some("token_embd.weight".into()),
        "model.norm.weight" => return Some("output_norm.weight".into()),
        "lm_head.weight" => return Some("output.weight".into()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let stem = match rest.strip_suffix(".weight")? {
        "input_layernorm" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "post_attention_layernorm" => "ffn_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    };
    Some(format!("blk.{layer}.{stem}.weight"))
}
