//! Every key of a configuration does what it does in transformers, or is refused by its name.
//!
//! `tests/reference/config_keys.py` changed the `config.json` of every family's fixture, key by key, and stored the
//! logits that transformers computes with it, or that it refuses it.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use selfrepair_core::config::{ModelConfig, RuntimeConfig};
use selfrepair_engine::{Engine, Needs, export};
use selfrepair_model::{Model, ModelSource};
use serde::Deserialize;
use serde_json::{Map, Value};

/// The least change of a stored logit that transformers computed is 3e-4.
const TOLERANCE: f64 = 1e-4;

#[derive(Deserialize)]
struct Expected {
    tokens: Vec<u32>,
    /// Of these positions, every `step`-th token's logit is stored.
    positions: Vec<usize>,
    step: usize,
    /// The object of the configuration whose keys the cases change; without it, the whole.
    within: Option<String>,
    cases: Vec<Case>,
    /// Each distinct outcome once; the first is that of the unchanged configuration.
    logits: Vec<Vec<f64>>,
}

#[derive(Deserialize)]
struct Case {
    #[serde(default)]
    set: Map<String, Value>,
    #[serde(default)]
    drop: Vec<String>,
    /// An index, or "refused".
    logits: Value,
}

/// A fixture's weights beside a configuration that changes.
struct Fixture {
    folder: tempfile::TempDir,
    config: Map<String, Value>,
    expected: Expected,
    /// What was computed, by the architecture.
    computed: Vec<(String, Vec<f64>)>,
}

impl Fixture {
    fn open(name: &str) -> Self {
        let source = Path::new("tests/fixtures/families").join(name);
        let folder = tempfile::tempdir().unwrap();
        fs::copy(source.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
        let config = serde_json::from_slice(&fs::read(source.join("config.json")).unwrap()).unwrap();
        let expected = fs::read(format!("tests/fixtures/config-keys/{name}.json")).unwrap();
        Self { folder, config, expected: serde_json::from_slice(&expected).unwrap(), computed: Vec::new() }
    }

    fn model(&self) -> Result<Model> {
        let source = ModelConfig { source: self.folder.path().display().to_string(), ..Default::default() };
        Model::open(ModelSource::resolve(&source)?)
    }

    fn rotates_more_than_one_pair(&self) -> bool {
        let rotary = self.model().unwrap().architecture.rotary;
        rotary.is_none_or(|rotary| rotary.inverse_frequencies.len() > 1)
    }

    /// The stored logits as this program computes them with a configuration.
    fn logits(&mut self, config: &Map<String, Value>) -> Result<Vec<f64>> {
        fs::write(self.folder.path().join("config.json"), serde_json::to_vec(config)?)?;
        let model = self.model()?;
        for layer in 0..model.architecture.layers {
            model.layer(layer)?;
        }
        model.ends()?;
        model.check_nothing_was_left_out()?;
        // The program refuses prompts longer than the context. Some families of transformers have a table of positions,
        // and longrope has a limit; other rotary positions go on.
        let a = &model.architecture;
        let rotary = [&a.rotary, &a.window_rotary].into_iter().flatten();
        let has_table = a.learned_positions() || ["codegen", "gptj", "mpt"].contains(&a.family.as_str());
        let limit = rotary.filter_map(|rotary| rotary.longest).min().or(has_table.then_some(a.context));
        ensure!(
            limit.is_none_or(|limit| self.expected.tokens.len() <= limit),
            "the prompt is longer than the context (`n_positions`, `max_seq_len`, `rope_scaling`, \
             `original_max_position_embeddings`)"
        );
        // The weights are the same, so the architecture decides, and what they are multiplied by.
        let multipliers = ["logit_scale", "logits_scaling", "residual_multiplier"].map(|key| config.get(key));
        let architecture = format!("{:?} {multipliers:?}", model.architecture);
        if let Some((_, logits)) = self.computed.iter().find(|(a, _)| *a == architecture) {
            return Ok(logits.clone());
        }
        let graphs = tempfile::tempdir()?;
        export::export(&model, self.expected.tokens.len(), graphs.path())?;
        let mut engine =
            Engine::load(&model.architecture, graphs.path(), &RuntimeConfig::default(), &Needs::trace(0, 0))?;
        let all = engine.logits(&self.expected.tokens)?;
        let of_position = |&p: &usize| &all[p * model.architecture.vocab..][..model.architecture.vocab];
        let stored = self.expected.positions.iter().flat_map(|p| of_position(p).iter().step_by(self.expected.step));
        let stored: Vec<f64> = stored.map(|&x| f64::from(x)).collect();
        self.computed.push((architecture, stored.clone()));
        Ok(stored)
    }
}

impl Case {
    fn apply(&self, config: &Map<String, Value>, within: Option<&str>) -> Map<String, Value> {
        let mut config = config.clone();
        if let Some(within) = within {
            let inner = self.apply(config[within].as_object().unwrap(), None);
            config.insert(within.into(), inner.into());
            return config;
        }
        config.extend(self.set.clone());
        config.retain(|key, _| !self.drop.contains(key));
        config
    }

    /// Keys that it changes, also those inside of an object.
    fn keys(&self) -> Vec<String> {
        let inner = self.set.values().filter_map(Value::as_object).flat_map(Map::keys);
        self.set.keys().chain(&self.drop).chain(inner).cloned().collect()
    }

    /// What is wrong with what this program computed.
    fn complaint(&self, name: &str, ours: Result<Vec<f64>>, expected: &Expected) -> Option<String> {
        let theirs = self.logits.as_u64().map(|i| &expected.logits[i as usize]);
        match (ours, theirs) {
            (Ok(ours), Some(theirs)) => far(&ours, theirs),
            (Ok(_), None) => Some("transformers refuses it; we do not".into()),
            (Err(error), theirs) => {
                let error = format!("{error:#}");
                if theirs.is_some() && is_supported(name, self) {
                    return Some(format!("transformers accepts it; {error}"));
                }
                let named = self.keys().iter().any(|key| error.contains(&format!("`{key}`")));
                (!named).then(|| format!("the error names no changed key: {error}"))
            }
        }
    }
}

fn far(ours: &[f64], theirs: &[f64]) -> Option<String> {
    assert_eq!(ours.len(), theirs.len());
    let worst = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).max_by(f64::total_cmp)?;
    // False for NaN.
    let is_near = worst <= TOLERANCE;
    (!is_near).then(|| format!("logits differ by {worst}"))
}

/// Values, or `dropped`, that transformers accepts and this program refuses by name. A value is refused in every family
/// that reads the key.
const NOT_SUPPORTED: &[(&str, &[&str])] = &[
    // Other attention, norms, activations and positions.
    ("is_causal", &["false", "null", "0"]),
    ("use_bidirectional_attention", &["true"]),
    ("attn_logit_softcapping", &["0.0", "-1.0"]),
    ("final_logit_softcapping", &["0.0"]),
    ("query_pre_attn_scalar", &["-3"]),
    ("attention_multiplier", &["0", "-0.5"]),
    ("attn_config", &[r#"{"alibi":false}"#, r#"{"alibi_bias_max":4}"#, r#"{"prefix_lm":true}"#]),
    ("layer_types", &[r#"["linear_attention","linear_attention","linear_attention"]"#]),
    ("clip_qkv", &["0.5", "2.5"]),
    ("attn_config", &[r#"{"clip_qkv":0.5}"#]),
    ("apply_residual_connection_post_layernorm", &["true"]),
    ("sliding_window", &["0"]),
    ("do_layer_norm_before", &["false"]),
    ("layer_norm_elementwise_affine", &["false"]),
    ("_remove_final_layer_norm", &["true"]),
    ("rms_norm_eps", &["2.5"]),
    ("layer_norm_eps", &["2.5"]),
    ("layer_norm_epsilon", &["2.5"]),
    ("norm_eps", &["2.5"]),
    ("norm_epsilon", &["2.5"]),
    ("hidden_act", &[r#""tanh""#]),
    ("activation_function", &[r#""quick_gelu""#]),
    ("activation", &[r#""quick_gelu""#]),
    (
        "rope_scaling",
        &[
            "[]",
            r#"{"rope_type":"proportional"}"#,
            // Rotary positions beside ALiBi, which does not need them.
            r#"{"factor":2.0,"partial_rotary_factor":0.5,"rope_type":"linear"}"#,
            // An odd number of dimensions.
            r#"{"factor":2.0,"rope_type":"yarn"}"#,
            r#"{"factor":4.0,"original_max_position_embeddings":16,"rope_type":"yarn"}"#,
            // The prompt is longer than the original context, where the long factors begin.
            r#"{"long_factor":[2.0,3.0,5.0],"original_max_position_embeddings":16,"rope_type":"longrope","short_factor":[1.0,1.5,2.5]}"#,
            r#"{"long_factor":[2.0,3.0,4.0,5.0],"original_max_position_embeddings":16,"rope_type":"longrope","short_factor":[1.0,1.5,2.0,2.5]}"#,
        ],
    ),
    ("original_max_position_embeddings", &["7", "16"]),
    ("use_mrope", &["true"]),
    ("rope_parameters", &[r#"{"full_attention":{"rope_theta":50.0,"rope_type":"default"}}"#]),
    // PyTorch takes true for 1.
    ("rope_theta", &["true"]),
    ("rotary_emb_base", &["true"]),
    ("rotary_pct", &["true"]),
    ("partial_rotary_factor", &["true", "0.75"]),
    // In gpt_neox and stablelm: the width of rotary positions alone.
    ("head_dim", &["4", "6"]),
    // Falcon: the same as none.
    ("n_embed", &["null"]),
    // transformers takes the default of one published model.
    ("n_head", &["dropped"]),
    ("num_attention_heads", &["dropped"]),
    // transformers leaves out weights that the configuration does not ask for.
    ("num_hidden_layers", &["2"]),
    ("n_layer", &["2", "dropped"]),
    ("num_nextn_predict_layers", &["0", "dropped"]),
    ("use_bias", &["false"]),
    ("bias", &["false", "null", "dropped"]),
    ("attention_bias", &["false", "dropped"]),
    ("mlp_bias", &["false", "dropped"]),
    ("use_qkv_bias", &["false", "dropped"]),
    ("qkv_bias", &["false"]),
    ("enable_bias", &["false"]),
    ("use_parallel_residual", &["true"]),
    ("parallel_attn", &["true", "dropped"]),
    // A mixture of no experts, or an MLP of another width that the model does not have.
    ("num_experts_per_tok", &["0"]),
    ("per_layer_config", &[r#"{"1":{"intermediate_size":12}}"#]),
    // transformers does not tie a stored unembedding that differs from the embedding.
    ("tie_word_embeddings", &["true"]),
    // Of a text model inside of another.
    ("model_type", &["null", "true", "7", "2.5", r#""text""#, r#""no such""#]),
    // transformers takes the class from `model_type`.
    ("architectures", &[r#"["GPT2LMHeadCustomModel"]"#, r#"["BertModel"]"#, r#""unknown""#]),
];

/// Families that do not read them, where transformers ignores some of what `rope_scaling` and `rope_parameters` may
/// be, and this program refuses all of it.
const NOT_ROTARY: [&str; 10] = [
    "bloom",
    "mpt",
    "codegen",
    "gpt2",
    "gpt2-stanford",
    "gpt_bigcode",
    "gpt_bigcode-multi-head",
    "gpt_neo",
    "gptj",
    "opt",
];

fn is_supported(name: &str, case: &Case) -> bool {
    let listed = |key: &str, value: &str| NOT_SUPPORTED.iter().any(|(k, values)| *k == key && values.contains(&value));
    let rotary = |key: &str| ["rope_scaling", "rope_parameters"].contains(&key);
    // It makes a window that is not used one of 0 positions.
    let window = |key: &str| ["layer_types", "max_window_layers"].contains(&key);
    if name == "qwen2_moe" && case.set.keys().any(|key| window(key)) {
        return false;
    }
    // It leaves out the numbers of the activation that are stored, where another is asked for.
    if name == "apertus" && case.set.contains_key("hidden_act") {
        return false;
    }
    !case.set.iter().any(|(key, value)| listed(key, &value.to_string()) || rotary(key) && NOT_ROTARY.contains(&name))
        && !case.drop.iter().any(|key| listed(key, "dropped"))
}

pub fn assert_keys_agree(name: &str) {
    let mut fixture = Fixture::open(name);
    let unchanged = fixture.config.clone();
    let cases = std::mem::take(&mut fixture.expected.cases);
    let same = fixture.logits(&unchanged).unwrap();
    assert!(fixture.rotates_more_than_one_pair(), "the base of rotary positions has no effect on the first pair");
    assert_eq!(far(&same, &fixture.expected.logits[0]), None);
    assert!(cases.len() > 300, "only {} cases", cases.len());
    let mut complaints = Vec::new();
    for case in &cases {
        let changed = case.apply(&unchanged, fixture.expected.within.as_deref());
        let ours = fixture.logits(&changed);
        if let Some(complaint) = case.complaint(name, ours, &fixture.expected) {
            complaints.push(format!("set {:?}, drop {:?}: {complaint}", case.set, case.drop));
        }
    }
    println!("{name}: {} changes, {} architectures run", cases.len(), fixture.computed.len());
    assert!(complaints.is_empty(), "{} complaints:\n{}", complaints.len(), complaints.join("\n"));
}
