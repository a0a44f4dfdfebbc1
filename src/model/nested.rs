//! The text model inside of one that reads images too (`Gemma3ForConditionalGeneration`).

use anyhow::{Result, bail};
use serde_json::{Map, Value};

/// `model_type` of the outer model, of its text model, and the class that `architectures` names.
const MODELS: [(&str, &str, &str); 1] = [("gemma3", "gemma3_text", "Gemma3ForConditionalGeneration")];

/// Keys of the outer configuration that are about its text model too.
const SHARED: [&str; 7] = [
    "dtype",
    "torch_dtype",
    "configuration_files",
    "per_layer_config",
    "quantization_config",
    "transformers_weights",
    "is_causal",
];

/// What the names of the text model's tensors begin with, as files have it and as families ask for it.
const PREFIXES: [(&str, &str); 3] =
    [("language_model.model.", "model."), ("model.language_model.", "model."), ("language_model.lm_head.", "lm_head.")];

/// What the names of other parts' tensors begin with.
const OTHERS: [&str; 4] =
    ["vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."];

/// The configuration of the text model, as if it stood alone; `None` if there is no outer model.
pub fn text_config(config: &Value) -> Result<Option<Value>> {
    let Some(outer) = config.as_object() else { return Ok(None) };
    let model_type = outer.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let Some((_, text_type, class)) = MODELS.iter().find(|(outer, _, _)| *outer == model_type) else { return Ok(None) };
    let mut text = match outer.get("text_config") {
        None => Map::new(),
        Some(Value::Object(text)) => text.clone(),
        Some(other) => bail!("`text_config` is {other}; expected an object, the configuration of the text model"),
    };
    if let Some(other) = text.get("model_type").filter(|own| own.as_str() != Some(*text_type)) {
        bail!("`text_config` has `model_type` = {other}; expected `{text_type}` in a `{model_type}`");
    }
    text.entry("model_type").or_insert_with(|| Value::from(*text_type));
    // The outer model does not read these there.
    for key in ["architectures", "configuration_files", "transformers_weights"] {
        text.remove(key);
    }
    // Nor does it cap logits. A value of another type stays, and is refused later.
    if text.get("final_logit_softcapping").is_some_and(Value::is_f64) {
        text.remove("final_logit_softcapping");
    }
    if let Some(classes) = outer.get("architectures").filter(|classes| **classes != Value::from(vec![*class])) {
        text.insert("architectures".into(), classes.clone());
    }
    for key in SHARED {
        if let Some(value) = outer.get(key) {
            text.insert(key.into(), value.clone());
        }
    }
    // Published checkpoints leave these out, or have them outside.
    for (key, default) in [("bos_token_id", 2), ("eos_token_id", 1)] {
        let outside = outer.get(key).cloned();
        text.entry(key).or_insert_with(|| outside.unwrap_or(Value::from(default)));
    }
    // The outer model ties its ends, unless it says otherwise. A value of another type stays, and is refused later.
    if text.get("tie_word_embeddings").is_none_or(Value::is_boolean) {
        let tied = outer.get("tie_word_embeddings").cloned().unwrap_or(Value::Bool(true));
        text.insert("tie_word_embeddings".into(), tied);
    }
    Ok(Some(Value::Object(text)))
}

/// The names that a file may have for a tensor of the text model.
pub fn stored_names(name: &str) -> impl Iterator<Item = String> {
    PREFIXES.iter().filter_map(move |(stored, asked)| Some(format!("{stored}{}", name.strip_prefix(asked)?)))
}

/// Whether a tensor is of another part than the text model.
pub fn is_of_another_part(name: &str) -> bool {
    OTHERS.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_of_the_outer_model_are_the_text_model_s_where_they_are_about_it() {
        assert_eq!(text_config(&json!({"model_type": "gemma3_text", "hidden_size": 8})).unwrap(), None);
        let config = json!({
            "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "torch_dtype": "bfloat16",
            "hidden_size": 99, "text_config": {"model_type": "gemma3_text", "hidden_size": 8, "architectures": ["x"]},
            "vision_config": {"hidden_size": 7}, "eos_token_id": [1, 106],
        });
        let expected = json!({
            "model_type": "gemma3_text", "hidden_size": 8, "torch_dtype": "bfloat16", "tie_word_embeddings": true,
            "bos_token_id": 2, "eos_token_id": [1, 106],
        });
        assert_eq!(text_config(&config).unwrap(), Some(expected));
        // Another class, and another way to store weights, are seen by who refuses them.
        let config = json!({"model_type": "gemma3", "architectures": ["Other"], "quantization_config": {"bits": 4}});
        let text = text_config(&config).unwrap().unwrap();
        assert_eq!(text["architectures"], json!(["Other"]));
        assert_eq!(text["quantization_config"], json!({"bits": 4}));
        for text in [json!(null), json!([]), json!({"model_type": "llama"})] {
            let error = text_config(&json!({"model_type": "gemma3", "text_config": text})).unwrap_err().to_string();
            assert!(error.contains("`text_config`"), "{error}");
        }
    }
}
