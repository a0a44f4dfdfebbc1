//! Keys of a configuration as transformers 5 takes them: the family's own defaults, types, and second spellings.
//!
//! A family lists the keys that it reads, and those whose type alone transformers checks. Whatever else a configuration
//! has is ignored, as transformers ignores it, but for [`REFUSED`].

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::Family;

/// A key and what it must be. The types and defaults are those of `configuration_NAME.py` in transformers.
pub type Key = (&'static str, Kind);

#[derive(Clone, Copy)]
pub enum Kind {
    /// A whole number without which the weights cannot be read. transformers has defaults for these too, which fit one
    /// published model only.
    Size,
    Whole(u64),
    /// A whole number or null.
    MaybeWhole(Option<u64>),
    /// A whole number that may be missing, but not null.
    GivenWhole,
    /// A number with a decimal point or an exponent. transformers refuses one without.
    Float(f64),
    /// A number with a decimal point or without.
    AnyNumber(f64),
    MaybeFloat,
    /// As [`Kind::MaybeFloat`], with another default than null.
    FloatOrNull(f64),
    Flag(bool),
    MaybeFlag,
    /// The same, with a default.
    FlagOrNull(bool),
    MaybeList,
    Text(&'static str),
    /// Read where it is used; without a default.
    Any,
    // Of [`Family::unused`], which need no default.
    /// A number, with a decimal point or without.
    Number,
    MaybeNumber,
    /// A number from 0 to 1.
    Share,
    /// The same, with a decimal point.
    FloatShare,
    MaybeText,
    /// A number with a decimal point, a text or null.
    FloatOrText,
    MaybeObject,
    /// A whole number, a list of them, or null.
    Ids,
}

impl Kind {
    /// What a missing key stands for; `None` if it stays missing.
    fn default(self) -> Option<Value> {
        match self {
            Self::Whole(n) | Self::MaybeWhole(Some(n)) => Some(json!(n)),
            Self::Float(x) | Self::AnyNumber(x) | Self::FloatOrNull(x) => Some(json!(x)),
            Self::Flag(flag) | Self::FlagOrNull(flag) => Some(json!(flag)),
            Self::Text(text) => Some(json!(text)),
            Self::MaybeWhole(None) | Self::GivenWhole => Some(Value::Null),
            Self::MaybeFloat | Self::MaybeFlag | Self::MaybeList | Self::MaybeObject => Some(Value::Null),
            Self::Size | Self::Any => None,
            Self::Number | Self::MaybeNumber | Self::Share | Self::FloatShare => None,
            Self::MaybeText | Self::FloatOrText | Self::Ids => None,
        }
    }

    fn fits(self, value: &Value) -> bool {
        let is_whole = |value: &Value| value.is_i64() || value.is_u64();
        let is_share = || value.as_f64().is_some_and(|share| (0.0..=1.0).contains(&share));
        match self {
            Self::Size | Self::Whole(_) | Self::GivenWhole => is_whole(value),
            Self::MaybeWhole(_) => is_whole(value) || value.is_null(),
            Self::Float(_) => value.is_f64(),
            Self::MaybeFloat | Self::FloatOrNull(_) => value.is_f64() || value.is_null(),
            Self::Flag(_) => value.is_boolean(),
            Self::MaybeFlag | Self::FlagOrNull(_) => value.is_boolean() || value.is_null(),
            Self::MaybeList => value.is_array() || value.is_null(),
            Self::Text(_) => value.is_string(),
            Self::Any => true,
            Self::Number | Self::AnyNumber(_) => value.is_number(),
            Self::MaybeNumber => value.is_number() || value.is_null(),
            Self::Share => is_share(),
            Self::FloatShare => value.is_f64() && is_share(),
            Self::MaybeText => value.is_string() || value.is_null(),
            Self::FloatOrText => value.is_f64() || value.is_string() || value.is_null(),
            Self::MaybeObject => value.is_object() || value.is_null(),
            Self::Ids => {
                value.is_null() || is_whole(value) || value.as_array().is_some_and(|ids| ids.iter().all(is_whole))
            }
        }
    }

    fn expected(self) -> &'static str {
        match self {
            Self::Size => "a positive whole number",
            Self::Whole(_) | Self::GivenWhole => "a whole number",
            Self::MaybeWhole(_) => "a whole number or null",
            Self::Float(_) => "a number with a decimal point",
            Self::MaybeFloat | Self::FloatOrNull(_) => "a number with a decimal point, or null",
            Self::Flag(_) => "true or false",
            Self::MaybeFlag | Self::FlagOrNull(_) => "true, false or null",
            Self::MaybeList => "a list or null",
            Self::Text(_) => "a text",
            Self::Any => "anything",
            Self::Number | Self::AnyNumber(_) => "a number",
            Self::MaybeNumber => "a number or null",
            Self::Share => "a number from 0 to 1",
            Self::FloatShare => "a number from 0 to 1 with a decimal point",
            Self::MaybeText => "a text or null",
            Self::FloatOrText => "a number with a decimal point, a text or null",
            Self::MaybeObject => "an object or null",
            Self::Ids => "a whole number, a list of them, or null",
        }
    }
}

/// Sizes that most families name in the same way.
pub const SIZES: &[Key] = &[
    ("hidden_size", Kind::Size),
    ("intermediate_size", Kind::Size),
    ("num_hidden_layers", Kind::Size),
    ("num_attention_heads", Kind::Size),
    ("vocab_size", Kind::Size),
];

/// Keys of rotary positions, but for the context.
pub const ROTARY: &[Key] = &[
    ("rope_parameters", Kind::Any),
    ("rope_scaling", Kind::Any),
    ("rope_theta", Kind::Any),
    ("partial_rotary_factor", Kind::Any),
    ("original_max_position_embeddings", Kind::Any),
];

/// Keys of the windows of Qwen 2 and 3.
pub const QWEN_WINDOWS: &[Key] = &[
    ("use_sliding_window", Kind::Flag(false)),
    ("sliding_window", Kind::MaybeWhole(Some(4096))),
    ("max_window_layers", Kind::Whole(28)),
];

/// As [`Family::unused`], of every family.
const UNUSED: &[Key] = &[
    ("use_cache", Kind::Flag(true)),
    ("pad_token_id", Kind::MaybeWhole(None)),
    ("bos_token_id", Kind::MaybeWhole(None)),
    ("eos_token_id", Kind::Ids),
    ("id2label", Kind::MaybeObject),
];

/// [`Family::unused`] of most families.
pub const UNUSED_BY_MOST: &[Key] = &[("initializer_range", Kind::Float(0.02)), ("attention_dropout", Kind::Number)];

/// The same, of families with mixtures of experts.
pub const UNUSED_WITH_EXPERTS: &[Key] = &[
    ("initializer_range", Kind::Float(0.02)),
    ("attention_dropout", Kind::Number),
    ("output_router_logits", Kind::Flag(false)),
    ("router_aux_loss_coef", Kind::Float(0.001)),
    ("router_jitter_noise", Kind::Float(0.0)),
];

/// Keys of any family that change the numbers, or which weights are read, and that no family handles.
const REFUSED: [&str; 8] = [
    // Other files to read in place of this one, by the version of transformers.
    "configuration_files",
    "per_layer_config",
    "quantization_config",
    "transformers_weights",
    "text_config",
    "text_encoder",
    "decoder",
    "generator",
];

/// The keys that a family reads, each of the type that transformers asks for, missing ones with its defaults.
pub fn resolve(config: &Value, family: &Family) -> Result<Map<String, Value>> {
    let given = config.as_object().context("the configuration is not an object")?;
    let says_something = |key: &str| given.get(key).filter(|v| ![json!(null), json!({}), json!([])].contains(v));
    for key in REFUSED {
        if let Some(value) = says_something(key).filter(|value| !is_mxfp4(family, key, value)) {
            bail!("the configuration has `{key}` = {value}, which is not supported yet");
        }
    }
    let has_rotary_positions = family.keys.iter().copied().flatten().any(|(key, _)| *key == "rope_parameters");
    for key in ["rope_scaling", "rope_parameters"].into_iter().filter(|_| !has_rotary_positions) {
        if let Some(value) = says_something(key) {
            bail!("the configuration has `{key}` = {value}, which this family does not read");
        }
    }
    if let Some(value) = given.get("is_causal") {
        let falsy = [json!(null), json!(false), json!(0), json!(0.0), json!(""), json!([]), json!({})];
        ensure!(!falsy.contains(value), "`is_causal` is {value}: attention to later positions is not supported");
    }
    check_class(given.get("architectures"), family)?;
    for &(key, kind) in UNUSED.iter().chain(family.unused) {
        if let Some(value) = given.get(key) {
            check_type(key, kind, value)?;
        }
    }

    let mut out = Map::new();
    for &(key, kind) in family.keys.iter().copied().flatten() {
        // transformers applies another spelling last, so it wins.
        let other = family.spellings.iter().find(|(_, own)| *own == key).map(|(other, _)| *other);
        let (name, found) = match other.and_then(|other| Some((other, given.get(other)?))) {
            Some((other, value)) => {
                given.get(key).map_or(Ok(()), |value| check_type(key, kind, value))?;
                (other, Some(value))
            }
            None => (key, given.get(key)),
        };
        match found {
            Some(value) => {
                check_type(name, kind, value)?;
                out.insert(key.to_string(), value.clone());
            }
            None if matches!(kind, Kind::Size) => {
                bail!("the configuration has no `{key}`; expected {}", kind.expected())
            }
            None => {
                kind.default().and_then(|value| out.insert(key.to_string(), value));
            }
        }
    }
    Ok(out)
}

/// A quantization that a family reads.
fn is_mxfp4(family: &Family, key: &str, value: &Value) -> bool {
    let is_read = || family.keys.iter().copied().flatten().any(|(read, _)| *read == key);
    key == "quantization_config" && value["quant_method"] == "mxfp4" && is_read()
}

fn check_type(key: &str, kind: Kind, value: &Value) -> Result<()> {
    ensure!(kind.fits(value), "`{key}` is {value}; expected {}", kind.expected());
    Ok(())
}

/// `architectures` names the class that the weights were saved from. One of another class has the family's
/// `model_type` but not its graph (SantaCoder: `gpt2` with `GPT2LMHeadCustomModel`).
fn check_class(architectures: Option<&Value>, family: &Family) -> Result<()> {
    let Some(value) = architectures.filter(|v| !v.is_null()) else { return Ok(()) };
    let known = |name: &Value| {
        // Llama's first checkpoints say `LLaMAForCausalLM`.
        name.as_str().is_some_and(|name| family.classes.iter().any(|class| class.eq_ignore_ascii_case(name)))
    };
    ensure!(
        value.as_array().is_some_and(|names| names.iter().all(known)),
        "`architectures` is {value}; expected {}",
        family.classes.iter().map(|class| format!("`{class}`")).collect::<Vec<_>>().join(" or ")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::families::find;

    fn resolved(model_type: &str, config: Value) -> Result<Map<String, Value>> {
        resolve(&config, find(model_type).unwrap())
    }

    fn gpt2() -> Value {
        json!({"n_embd": 24, "n_head": 4, "n_layer": 3, "vocab_size": 384, "n_positions": 64})
    }

    #[test]
    fn a_missing_key_has_the_family_s_default() {
        let config = resolved("gpt2", gpt2()).unwrap();
        assert_eq!(config["layer_norm_epsilon"], json!(1e-5));
        assert_eq!(config["activation_function"], json!("gelu_new"));
        assert_eq!(config["tie_word_embeddings"], json!(true));
        assert_eq!(config["n_inner"], Value::Null);
    }

    #[test]
    fn a_second_spelling_wins() {
        let mut config = gpt2();
        config["hidden_size"] = json!(48);
        assert_eq!(resolved("gpt2", config.clone()).unwrap()["n_embd"], json!(48));
        config["hidden_size"] = json!(null);
        assert!(resolved("gpt2", config).unwrap_err().to_string().contains("`hidden_size` is null"));
    }

    #[test]
    fn a_wrong_type_or_a_missing_size_is_named() {
        for (key, value, word) in [
            ("layer_norm_epsilon", json!(1), "decimal point"),
            ("n_inner", json!("44"), "a whole number or null"),
            ("scale_attn_weights", json!(null), "true or false"),
            ("activation_function", json!(7), "a text"),
            // No number depends on these.
            ("use_cache", json!("yes"), "true or false"),
            ("eos_token_id", json!(["a"]), "a whole number, a list of them"),
            ("resid_pdrop", json!(1.5), "a number from 0 to 1"),
            ("summary_activation", json!(true), "a text or null"),
            ("id2label", json!([]), "an object or null"),
        ] {
            let mut config = gpt2();
            config[key] = value;
            let error = resolved("gpt2", config).unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}`")) && error.contains(word), "{error}");
        }
        let mut config = gpt2();
        config.as_object_mut().unwrap().remove("n_head");
        assert!(resolved("gpt2", config).unwrap_err().to_string().contains("no `n_head`"));
    }

    #[test]
    fn another_class_than_the_family_s_is_refused() {
        for (classes, fits) in [
            (json!(null), true),
            (json!([]), true),
            (json!(["GPT2LMHeadModel"]), true),
            (json!(["GPT2LMHeadCustomModel"]), false),
            (json!(["GPT2LMHeadModel", "Other"]), false),
            (json!("GPT2LMHeadModel"), false),
        ] {
            let mut config = gpt2();
            config["architectures"] = classes.clone();
            let error = resolved("gpt2", config).err().map(|e| e.to_string());
            assert_eq!(error.is_none(), fits, "{classes}: {error:?}");
            assert!(error.is_none_or(|e| e.contains("`architectures`")), "{classes}");
        }
    }

    #[test]
    fn what_no_family_handles_is_refused_by_name() {
        for (key, value) in [
            ("is_causal", json!(false)),
            ("is_causal", json!(null)),
            ("is_causal", json!(0)),
            ("configuration_files", json!(["config.4.0.0.json"])),
            ("per_layer_config", json!({"1": {"n_inner": 8}})),
            ("quantization_config", json!({"quant_method": "gptq"})),
            ("transformers_weights", json!("other.safetensors")),
            ("rope_parameters", json!({"rope_theta": 50.0})),
        ] {
            let mut config = gpt2();
            config[key] = value;
            assert!(resolved("gpt2", config).unwrap_err().to_string().contains(&format!("`{key}`")));
        }
        let mut config = gpt2();
        config["is_causal"] = json!(true);
        config["quantization_config"] = json!(null);
        resolved("gpt2", config).unwrap();
    }
}
