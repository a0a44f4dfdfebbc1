//! Which layers look back on a window of positions only.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::common::flag;
use crate::architecture::Architecture;
use crate::checkpoint::Checkpoint;

/// The same window in every layer, if there is one.
pub fn of_all(c: &Checkpoint, a: &mut Architecture) -> Result<()> {
    let slides = vec![!c.key("sliding_window").is_null(); a.layers];
    set(c, a, &slides)
}

/// The same window in every layer. With a key `layer_types`, even a null, transformers takes the model for a
/// `ministral`, which has the window in some layers and no default for `head_dim`.
pub fn of_mistral(c: &Checkpoint, a: &mut Architecture) -> Result<()> {
    if a.family == "mistral" && c.given("layer_types").is_none() {
        return of_all(c, a);
    }
    for key in ["head_dim", "sliding_window"] {
        ensure!(!c.key(key).is_null(), "`ministral`, and `mistral` with `layer_types`, must have a number `{key}`");
    }
    let slides = layer_types(c, a.layers)?.unwrap_or(vec![true; a.layers]);
    set(c, a, &slides)
}

/// Without `layer_types`: the layers from `max_window_layers` on. None at all without `use_sliding_window`.
pub fn of_qwen(c: &Checkpoint, a: &mut Architecture) -> Result<()> {
    let used = flag(c, "use_sliding_window")?;
    let first = c.key("max_window_layers").as_i64().unwrap_or(i64::MAX);
    let has_window = used && !c.key("sliding_window").is_null();
    let from_first_on = || (0..a.layers).map(|l| has_window && l as i64 >= first).collect();
    let slides = layer_types(c, a.layers)?.unwrap_or_else(from_first_on);
    ensure!(used || !slides.contains(&true), "`layer_types` has sliding_attention, but `use_sliding_window` is false");
    set(c, a, &slides)
}

/// Without `layer_types`: every second layer, from the first on, below `max_window_layers`, if `use_sliding_window`.
pub fn of_qwen2_moe(c: &Checkpoint, a: &mut Architecture) -> Result<()> {
    let used = flag(c, "use_sliding_window")?;
    let end = c.key("max_window_layers").as_i64().unwrap_or(i64::MAX);
    let every_second = || (0..a.layers).map(|l| used && l % 2 == 0 && (l as i64) < end).collect();
    let slides = layer_types(c, a.layers)?.unwrap_or_else(every_second);
    ensure!(used || !slides.contains(&true), "`layer_types` has sliding_attention, but `use_sliding_window` is false");
    set(c, a, &slides)
}

/// The same window in every layer, if `use_sliding_window`.
pub fn of_qwen3_moe(c: &Checkpoint, a: &mut Architecture) -> Result<()> {
    if flag(c, "use_sliding_window")? { of_all(c, a) } else { Ok(()) }
}

/// Without `layer_types`: the layers without positions, if `use_sliding_window`.
pub fn of_smollm3(c: &Checkpoint, a: &mut Architecture) -> Result<()> {
    let used = flag(c, "use_sliding_window")? && !c.key("sliding_window").is_null();
    let without_positions = || a.attention.iter().map(|kind| used && !kind.rotary).collect();
    let slides = layer_types(c, a.layers)?.unwrap_or_else(without_positions);
    set(c, a, &slides)
}

/// Without `layer_types`: all layers but every `n`-th.
pub fn alternating(c: &Checkpoint, a: &mut Architecture, n: usize) -> Result<()> {
    let all_but_every = || (0..a.layers).map(|l| (l + 1) % n != 0).collect();
    let slides = layer_types(c, a.layers)?.unwrap_or_else(all_but_every);
    set(c, a, &slides)
}

fn set(c: &Checkpoint, a: &mut Architecture, slides: &[bool]) -> Result<()> {
    if !slides.contains(&true) {
        return Ok(());
    }
    let window = c.optional_size("sliding_window")?;
    ensure!(window.is_some(), "`layer_types` has sliding_attention, but `sliding_window` is not set");
    for (kind, &slides) in a.attention.iter_mut().zip(slides) {
        kind.window = if slides { window } else { None };
    }
    Ok(())
}

/// For each layer, whether `layer_types` names it a sliding one; `None` without such a list. transformers checks the
/// list in families that do not use it too.
pub fn layer_types(c: &Checkpoint, layers: usize) -> Result<Option<Vec<bool>>> {
    let types = &c.config()["layer_types"];
    let wrong = || {
        format!(
            "`layer_types` is {types}; expected sliding_attention or full_attention for each of {layers} layers \
             (`num_hidden_layers`)"
        )
    };
    let Some(list) = types.as_array() else {
        if !types.is_null() {
            bail!(wrong());
        }
        return Ok(None);
    };
    let slides: Vec<bool> = list.iter().map(slides).collect::<Option<_>>().with_context(wrong)?;
    ensure!(slides.len() == layers, wrong());
    Ok(Some(slides))
}

/// Whether a layer of that name looks at a window. `attention` is an earlier name.
fn slides(name: &Value) -> Option<bool> {
    match name.as_str()? {
        "sliding_attention" => Some(true),
        "full_attention" | "attention" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::{Value, json};

    use crate::Model;
    use selfrepair_core::config::ModelConfig;

    /// The windows of a model of 30 layers, whose configuration has these keys beside its sizes.
    fn windows(model_type: &str, keys: Value) -> Result<Vec<Option<usize>>, String> {
        let mut config = json!({
            "model_type": model_type, "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 30,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 384, "head_dim": 8,
        });
        for (key, value) in keys.as_object().unwrap() {
            config[key] = value.clone();
        }
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let source = ModelConfig { source: dir.path().display().to_string(), ..Default::default() };
        let model = Model::open_configuration(&source).map_err(|e| format!("{e:#}"))?;
        Ok(model.architecture.attention.iter().map(|kind| kind.window).collect())
    }

    #[test]
    fn a_missing_window_is_the_family_s() {
        assert_eq!(windows("mistral", json!({})).unwrap(), [Some(4096); 30]);
        assert_eq!(windows("mistral", json!({"sliding_window": null})).unwrap(), [None; 30]);
        for qwen in ["qwen2", "qwen3"] {
            assert_eq!(windows(qwen, json!({})).unwrap(), [None; 30]);
            // The last two of 30: `max_window_layers` is 28 where it is missing.
            let found = windows(qwen, json!({"use_sliding_window": true})).unwrap();
            assert_eq!((&found[..28], &found[28..]), (&[None; 28][..], &[Some(4096); 2][..]));
            let every = json!({"use_sliding_window": true, "max_window_layers": 0, "sliding_window": 5});
            assert_eq!(windows(qwen, every).unwrap(), [Some(5); 30]);
        }
        // Every fourth layer has no positions.
        let found = windows("smollm3", json!({"use_sliding_window": true, "sliding_window": 5})).unwrap();
        assert!(found.iter().enumerate().all(|(l, &w)| w == if l % 4 == 3 { Some(5) } else { None }), "{found:?}");
    }

    #[test]
    fn layer_types_go_before_everything_else() {
        let types: Vec<&str> = (0..30).map(|l| if l == 3 { "sliding_attention" } else { "attention" }).collect();
        let expected: Vec<Option<usize>> = (0..30).map(|l| (l == 3).then_some(7)).collect();
        for (model_type, used) in [("mistral", false), ("qwen2", true), ("qwen3", true), ("smollm3", false)] {
            let keys = json!({"layer_types": types, "sliding_window": 7, "use_sliding_window": used});
            assert_eq!(windows(model_type, keys).unwrap(), expected, "{model_type}");
        }
        for (model_type, keys, word) in [
            ("qwen2", json!({"layer_types": types}), "`use_sliding_window`"),
            ("smollm3", json!({"layer_types": types}), "`sliding_window`"),
            ("mistral", json!({"layer_types": types, "head_dim": null}), "`head_dim`"),
            ("mistral", json!({"layer_types": null, "sliding_window": null}), "`sliding_window`"),
            ("llama", json!({"layer_types": ["full_attention"]}), "`layer_types`"),
            ("llama", json!({"layer_types": "full_attention"}), "`layer_types`"),
        ] {
            let error = windows(model_type, keys).unwrap_err();
            assert!(error.contains(word), "{model_type}: {error}");
        }
    }
}
