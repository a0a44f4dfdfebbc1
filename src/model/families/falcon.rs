//! Falcon (`FalconForCausalLM`): layer norms, one matrix for q, k and v, rotary positions or ALiBi. Three layouts: Falcon-7B
//! (one key-value head, parallel residual behind one norm), Falcon-40B (`new_decoder_architecture`: grouped-query heads,
//! parallel residual behind two norms), and a serial one.

use anyhow::{Result, ensure};

use super::Family;
use super::alibi::slopes;
use super::common::{Sizes, activation, even_share, linear, norm, outputs, side_by_side, unembedding, with_sizes};
use super::keys::{Kind, ROTARY};
use super::rotary::{RotaryKeys, rotary};
use crate::architecture::{Alibi, Architecture, Biases, Ends, LayerWeights, Linear};
use crate::checkpoint::Checkpoint;
use crate::mlp::Mlp;

pub const FAMILY: Family = Family {
    keys: &[
        ROTARY,
        &[
            ("hidden_size", Kind::Size),
            ("num_hidden_layers", Kind::Size),
            ("num_attention_heads", Kind::Size),
            ("vocab_size", Kind::Size),
            ("max_position_embeddings", Kind::Whole(2048)),
            ("num_kv_heads", Kind::MaybeWhole(None)),
            ("ffn_hidden_size", Kind::MaybeWhole(None)),
            ("num_ln_in_parallel_attn", Kind::MaybeWhole(None)),
            ("new_decoder_architecture", Kind::FlagOrNull(false)),
            ("multi_query", Kind::FlagOrNull(true)),
            ("parallel_attn", Kind::FlagOrNull(true)),
            ("alibi", Kind::FlagOrNull(false)),
            ("bias", Kind::FlagOrNull(false)),
            ("activation", Kind::Text("gelu")),
            ("layer_norm_epsilon", Kind::Float(1e-5)),
            ("tie_word_embeddings", Kind::Flag(true)),
        ],
    ],
    unused: &[
        ("initializer_range", Kind::Float(0.02)),
        ("hidden_dropout", Kind::Share),
        ("attention_dropout", Kind::Share),
    ],
    spellings: &[("n_embed", "hidden_size")],
    classes: &["FalconForCausalLM", "FalconModel"],
    architecture,
    layer,
    ends,
};

/// How the heads' columns lie in the one matrix for q, k and v.
enum Layout {
    /// Each key-value head behind the query heads that share it.
    Groups,
    /// All query heads, then the one key, then the one value.
    MultiQuery,
    /// Head after head, each with its query, key and value.
    MultiHead,
}

fn layout(c: &Checkpoint) -> Layout {
    match (flag(c, "new_decoder_architecture"), flag(c, "multi_query")) {
        (true, _) => Layout::Groups,
        (false, true) => Layout::MultiQuery,
        (false, false) => Layout::MultiHead,
    }
}

/// A flag that may be null, which is false.
fn flag(c: &Checkpoint, key: &str) -> bool {
    *c.key(key) == true
}

fn architecture(c: &Checkpoint) -> Result<Architecture> {
    let (d_model, heads, layers) =
        (c.size("hidden_size")?, c.size("num_attention_heads")?, c.size("num_hidden_layers")?);
    let d_mlp = c.optional_size("ffn_hidden_size")?.unwrap_or(4 * d_model);
    let d_head = even_share(c, "hidden_size", "num_attention_heads")?;
    let given = c.optional_size("num_kv_heads")?.unwrap_or(heads);
    let kv_heads = match layout(c) {
        Layout::Groups => given,
        Layout::MultiQuery => 1,
        Layout::MultiHead => {
            ensure!(
                given == heads,
                "`num_kv_heads` is {given}; without `multi_query` and `new_decoder_architecture`, expected {heads} \
                 (`num_attention_heads`)"
            );
            heads
        }
    };
    ensure!(
        heads.is_multiple_of(kv_heads),
        "{heads} heads (`num_attention_heads`) cannot share {kv_heads} key-value heads (`num_kv_heads`) evenly"
    );
    let mut a = with_sizes(c, Sizes { layers, heads, kv_heads, d_model, d_head, d_mlp })?;
    // transformers cannot set what it computes.
    ensure!(
        c.config().get("head_dim").is_none(),
        "`head_dim` is not a key of this family: it is `hidden_size` / heads"
    );
    a.parallel = flag(c, "parallel_attn");
    check_norms(c, a.parallel)?;
    let bias = flag(c, "bias");
    a.norm_eps = c.epsilon("layer_norm_epsilon")?;
    // transformers reads its keys beside ALiBi too.
    let rotary = rotary(c, d_head, &RotaryKeys::whole(10_000.0))?;
    match flag(c, "alibi") {
        true => {
            a.alibi = Some(Alibi {
                slopes: slopes(heads),
                is_bfloat16: true,
                factor: (d_head as f32).sqrt().recip(),
                is_from_end: false,
            })
        }
        false => a.rotary = Some(rotary),
    }
    a.activation = activation(c, "activation")?;
    a.biases = Biases { norm: true, qkv: bias, attention_out: bias, mlp_in: bias, mlp_out: bias, unembedding: false };
    a.dtype = c.dtype("transformer.h.0.mlp.dense_4h_to_h.weight")?;
    Ok(a)
}

/// Whether a parallel block has a norm for each of its parts; combinations that transformers cannot run are errors.
fn has_two_norms(c: &Checkpoint) -> Result<bool> {
    let is_new = flag(c, "new_decoder_architecture");
    Ok(is_new && c.optional_size("num_ln_in_parallel_attn")?.is_none_or(|norms| norms == 2))
}

fn check_norms(c: &Checkpoint, is_parallel: bool) -> Result<()> {
    let is_new = flag(c, "new_decoder_architecture");
    ensure!(
        is_parallel || !is_new,
        "`parallel_attn` is false, but `new_decoder_architecture` is true, which has no serial blocks"
    );
    let norms = c.optional_size("num_ln_in_parallel_attn")?;
    let fits = match (is_new, norms) {
        (_, None | Some(1)) => true,
        (true, Some(norms)) => norms == 2,
        (false, Some(norms)) => norms != 2 || !is_parallel,
    };
    ensure!(
        fits,
        "`num_ln_in_parallel_attn` is {}; expected 1, or 2 with `new_decoder_architecture`",
        c.key("num_ln_in_parallel_attn")
    );
    Ok(())
}

fn layer(c: &Checkpoint, a: &Architecture, layer: usize) -> Result<LayerWeights> {
    let name = |rest: &str| format!("transformer.h.{layer}.{rest}");
    let (width, kv, b) = (a.heads * a.d_head, a.kv_heads * a.d_head, a.biases);
    let qkv = linear(c, &name("self_attention.query_key_value"), a.d_model, width + 2 * kv, b.qkv)?;
    let [q, k, v] = match layout(c) {
        Layout::Groups => groups(&qkv, a),
        Layout::MultiQuery => [0..width, width..width + kv, width + kv..width + 2 * kv].map(|i| outputs(&qkv, i)),
        Layout::MultiHead => side_by_side(&qkv, a.d_head),
    };
    let (attention_norm, mlp_norm) = match (a.parallel, has_two_norms(c)?) {
        (true, true) => (norm(c, a, &name("ln_attn"))?, norm(c, a, &name("ln_mlp"))?),
        (true, false) => {
            let shared = norm(c, a, &name("input_layernorm"))?;
            (shared.clone(), shared)
        }
        (false, _) => (norm(c, a, &name("input_layernorm"))?, norm(c, a, &name("post_attention_layernorm"))?),
    };
    Ok(LayerWeights {
        attention_norm,
        q,
        k,
        v,
        o: linear(c, &name("self_attention.dense"), width, a.d_model, b.attention_out)?,
        qk_norm: None,
        sinks: None,
        mlp_norm,
        write_norms: None,
        mlp: Mlp {
            gate: None,
            up: linear(c, &name("mlp.dense_h_to_4h"), a.d_model, a.d_mlp, b.mlp_in)?,
            down: linear(c, &name("mlp.dense_4h_to_h"), a.d_mlp, a.d_model, b.mlp_out)?,
        }
        .into(),
    })
}

fn groups(qkv: &Linear, a: &Architecture) -> [Linear; 3] {
    let (d_head, queries) = (a.d_head, a.heads / a.kv_heads);
    let q = (0..a.heads * d_head).map(|i| {
        let (head, dim) = (i / d_head, i % d_head);
        (head / queries * (queries + 2) + head % queries) * d_head + dim
    });
    let behind = |which: usize| {
        let column = move |i: usize| (i / d_head * (queries + 2) + queries + which) * d_head + i % d_head;
        outputs(qkv, (0..a.kv_heads * d_head).map(column))
    };
    [outputs(qkv, q), behind(0), behind(1)]
}

fn ends(c: &Checkpoint, a: &Architecture) -> Result<Ends> {
    let embedding = c.matrix("transformer.word_embeddings.weight", a.vocab, a.d_model)?;
    Ok(Ends {
        positions: None,
        final_norm: norm(c, a, "transformer.ln_f")?,
        unembedding: unembedding(c, a, "lm_head", &embedding)?,
        embedding,
        unembedding_bias: None,
    })
}
