//! Names and layouts of tensors: reverts the changes of llama.cpp's converter (`convert_hf_to_gguf.py`).

use candle_core::{Result, Tensor};

use super::GgufFile;

/// Architectures with norms on what attention and the MLP write.
const WRITE_NORMS: [&str; 3] = ["gemma2", "gemma3", "olmo2"];

/// `model.layers.3.mlp.up_proj.weight` → `blk.3.ffn_up.weight`; `None` if no GGUF file has such a tensor.
pub fn stored_name(file: &GgufFile, name: &str) -> Option<String> {
    let (stem, kind) = name.rsplit_once('.')?;
    if let Some(stem) = outside_blocks(stem) {
        return Some(format!("{stem}.{kind}"));
    }
    let (layer, part) = ["model.layers.", "transformer.h.", "transformer.blocks.", "gpt_neox.layers."]
        .iter()
        .find_map(|p| stem.strip_prefix(p))?
        .split_once('.')?;
    let own = format!("blk.{layer}.{}.{kind}", in_block(file, part)?);
    // Phi's three matrices are stored as one.
    let fused = format!("blk.{layer}.attn_qkv.{kind}");
    Some(if !file.stores(&own) && third(part).is_some() && file.stores(&fused) { fused } else { own })
}

fn outside_blocks(stem: &str) -> Option<&'static str> {
    Some(match stem {
        "model.embed_tokens" | "transformer.wte" | "transformer.word_embeddings" | "gpt_neox.embed_in" => "token_embd",
        "transformer.word_embeddings_layernorm" => "token_embd_norm",
        "transformer.wpe" => "position_embd",
        "model.norm"
        | "model.final_layernorm"
        | "transformer.ln_f"
        | "transformer.norm_f"
        | "gpt_neox.final_layer_norm" => "output_norm",
        "lm_head" | "embed_out" => "output",
        _ => return None,
    })
}

fn in_block(file: &GgufFile, part: &str) -> Option<&'static str> {
    // Where norms are on what is written, this name is that of another norm.
    let has_write_norms = file.architecture().is_ok_and(|arch| WRITE_NORMS.contains(&arch));
    Some(match part {
        "post_attention_layernorm" if has_write_norms => "post_attention_norm",
        "pre_feedforward_layernorm" => "ffn_norm",
        "post_feedforward_layernorm" => "post_ffw_norm",
        // Falcon-40B: llama.cpp reads the MLP's norm by the name of the only norm of Falcon-7B.
        "ln_attn" => "attn_norm_2",
        "input_layernorm" | "ln_1" | "ln_mlp" | "norm_1" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "attn.c_attn"
        | "attn.Wqkv"
        | "attention.query_key_value"
        | "self_attention.query_key_value"
        | "self_attn.qkv_proj" => "attn_qkv",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "self_attn.o_proj"
        | "self_attn.dense"
        | "attn.c_proj"
        | "attn.out_proj"
        | "attention.dense"
        | "self_attention.dense" => "attn_output",
        "post_attention_layernorm" | "ln_2" | "norm_2" => "ffn_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" | "mlp.gate_up_proj" | "mlp.fc1" | "mlp.c_fc" | "mlp.dense_h_to_4h" | "ffn.up_proj" => "ffn_up",
        "mlp.down_proj" | "mlp.fc2" | "mlp.c_proj" | "mlp.dense_4h_to_h" | "ffn.down_proj" => "ffn_down",
        _ => return None,
    })
}

/// Which third of a fused matrix a projection is.
fn third(part: &str) -> Option<usize> {
    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"].iter().position(|p| part.ends_with(p))
}

/// The stored tensor in Hugging Face's layout.
pub fn restore(file: &GgufFile, name: &str, stored: Tensor) -> Result<Tensor> {
    let arch = file.architecture().map_err(|e| candle_core::Error::Msg(e.to_string()))?.to_string();
    let count = |key: &str| {
        let count =
            file.integer(&format!("{arch}.attention.{key}")).map_err(|e| candle_core::Error::Msg(e.to_string()))?;
        candle_core::Result::Ok(count.map(|n| n as usize))
    };
    let heads = count("head_count")?.unwrap_or(0);
    let part = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    match arch.as_str() {
        "granite" | "llama" | "olmo" | "smollm3" if part.ends_with("q_proj") => side_by_side_to_halves(&stored, heads),
        "granite" | "llama" | "olmo" | "smollm3" if part.ends_with("k_proj") => {
            side_by_side_to_halves(&stored, count("head_count_kv")?.unwrap_or(heads))
        }
        // Transposed on conversion, as GPT-2 stores [in, out].
        "gpt2" if stored.rank() == 2 && part.contains(".c_") => stored.t()?.contiguous(),
        "bloom" | "gptneox" if part.ends_with("query_key_value") => interleave_heads(&stored, heads),
        "falcon" if part.ends_with("query_key_value") => {
            group_heads(&stored, heads, count("head_count_kv")?.unwrap_or(heads))
        }
        // 1 was added on conversion.
        "gemma" | "gemma2" | "gemma3" if part.ends_with("norm") => stored - 1.0,
        "phi2" => match third(part) {
            Some(which) if !file.stores(&format!("blk.{}.attn_q.weight", layer_of(name))) => {
                let rows = stored.dim(0)? / 3;
                stored.narrow(0, which * rows, rows)?.contiguous()
            }
            _ => Ok(stored),
        },
        _ => Ok(stored),
    }
}

fn layer_of(name: &str) -> &str {
    name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()).unwrap_or("0")
}

/// llama.cpp stores the rows of W_Q and W_K so that rotary pairs lie side by side; Hugging Face (and this program)
/// pairs the first half of a head with its second half. Undoes `LlamaModel.permute`.
fn side_by_side_to_halves(tensor: &Tensor, heads: usize) -> Result<Tensor> {
    let rows = tensor.dim(0)?;
    if heads == 0 || rows == 0 || rows % (2 * heads) != 0 {
        candle_core::bail!("{rows} rows cannot be split into {heads} heads");
    }
    let columns = tensor.elem_count() / rows;
    let pairs = tensor.reshape((heads, rows / heads / 2, 2, columns))?;
    pairs.transpose(1, 2)?.contiguous()?.reshape(tensor.shape())
}

/// q, k and v one after the other → head by head, as GPT-NeoX has them.
fn interleave_heads(tensor: &Tensor, heads: usize) -> Result<Tensor> {
    let rows = tensor.dim(0)?;
    if heads == 0 || rows == 0 || rows % (3 * heads) != 0 {
        candle_core::bail!("{rows} rows cannot be split into q, k and v of {heads} heads");
    }
    let columns = tensor.elem_count() / rows;
    let parts = tensor.reshape((3, heads, rows / heads / 3, columns))?;
    parts.transpose(0, 1)?.contiguous()?.reshape(tensor.shape())
}

/// All q, then all k, then all v → each key and value behind the queries that share them, as Falcon has them.
fn group_heads(tensor: &Tensor, heads: usize, kv_heads: usize) -> Result<Tensor> {
    let rows = tensor.dim(0)?;
    if kv_heads == 0 || rows == 0 || !heads.is_multiple_of(kv_heads) || !rows.is_multiple_of(heads + 2 * kv_heads) {
        candle_core::bail!("{rows} rows cannot be split into {heads} heads of q and {kv_heads} of k and v");
    }
    let (d_head, columns) = (rows / (heads + 2 * kv_heads), tensor.elem_count() / rows);
    let part = |from: usize, of: usize| {
        tensor.narrow(0, from * d_head, of * d_head)?.reshape((kv_heads, of / kv_heads, d_head, columns))
    };
    let (q, k, v) = (part(0, heads)?, part(heads, kv_heads)?, part(heads + kv_heads, kv_heads)?);
    Tensor::cat(&[q, k, v], 1)?.reshape(tensor.shape())
}
