//! What a run is asked to do: the TOML file, its documented defaults, and `--set key=value`.
//!
//! A configuration is three layers, later ones winning: the defaults below, the file (`pipeline/quick.toml` when none
//! is named), and the `--set` options. Unknown keys are errors, because a misspelt key that is silently ignored is a
//! wrong result.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// The configuration used when `--config` is not given.
pub const QUICK: &str = include_str!("../pipeline/quick.toml");

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub model: ModelConfig,
    pub corpus: CorpusConfig,
    pub ablation: AblationConfig,
    pub trace: TraceConfig,
    pub analysis: AnalysisConfig,
    pub runtime: RuntimeConfig,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// `package:smollm2`, `hf:owner/name`, a directory with `config.json` and weights, or a `.gguf` file.
    pub source: String,
    /// Branch, tag or commit of an `hf:` source; empty is its main branch.
    pub revision: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CorpusConfig {
    /// `package:news`, `hf:owner/name` (a data set), or a `.txt` (a document a line), `.jsonl`, `.jsonl.gz`, `.jsonl.zst` or `.parquet` file.
    pub source: String,
    /// The column or JSON key that holds a document.
    pub text_column: String,
    /// Tokens to measure; prompts = tokens / prompt_len, rounded down.
    pub tokens: usize,
    /// Tokens in a prompt, the BOS included.
    pub prompt_len: usize,
    /// Put a BOS token before each prompt.
    pub bos: bool,
    /// The token between documents; `<|endoftext|>` if the vocabulary has it, else the EOS token.
    pub separator: Option<String>,
    /// The token before each prompt; the model's own BOS, else the separator.
    pub bos_token: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AblationConfig {
    /// One kind or several.
    #[serde(deserialize_with = "one_or_more")]
    pub kinds: Vec<Kind>,
    /// `"all"`, or a list of `"L20"`, `"L20-29"`, `"L22H11"`, `"L22H0-3"`.
    pub heads: Selection,
    pub resample: ResampleConfig,
    /// Draws the resample partners.
    pub seed: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ResampleConfig {
    /// Pairings drawn; the effects of a token are averaged over them.
    pub samples: usize,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TraceConfig {
    /// Raw activations to keep as Arrow IPC files.
    pub save: Vec<Activation>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AnalysisConfig {
    /// The share of tokens with the highest direct effect that counts as a head's "top" tokens.
    pub top_fraction: f64,
    /// A folder of the user's own queries, each a table.
    pub sql: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuntimeConfig {
    /// `cpu`, `cuda` or `cuda:n`.
    pub device: String,
    /// Rows (ablations × positions) in one call of a graph; 0 chooses.
    pub batch: usize,
    /// Threads of ONNX Runtime and of tokenization; 0 takes all cores.
    pub threads: usize,
}

/// What a head's output is replaced by, at all positions at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The head's mean `z` over all prompts and positions.
    Mean,
    /// The head's `z` at the same position of a partner prompt.
    Resample,
    /// Zero.
    Zero,
}

impl Kind {
    /// The name in the `ablation` column.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Mean => "mean",
            Kind::Resample => "resample",
            Kind::Zero => "zero",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// Every head's `z`, \[layers · heads · d_head\] a position.
    HeadZ,
    /// Every MLP neuron after its activation, \[layers · d_mlp\] a position.
    MlpPost,
    /// The stream before the final norm, \[d_model\] a position.
    ResidualFinal,
}

/// `"zero"` as well as `["zero", "mean"]`.
fn one_or_more<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<Kind>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected one or more of \"resample\", \"mean\", \"zero\"")]
    enum Kinds {
        One(Kind),
        Several(Vec<Kind>),
    }
    Ok(match Kinds::deserialize(deserializer)? {
        Kinds::One(kind) => vec![kind],
        Kinds::Several(kinds) => kinds,
    })
}

/// `"all"` or a list such as `["L20-29", "L3H1"]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected \"all\" or a list such as [\"L20-29\", \"L22H11\"]")]
pub enum Selection {
    Word(String),
    List(Vec<String>),
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self { source: "package:smollm2".into(), revision: String::new() }
    }
}

impl Default for CorpusConfig {
    fn default() -> Self {
        Self {
            source: "package:news".into(),
            text_column: "text".into(),
            tokens: 100_000,
            prompt_len: 128,
            bos: true,
            separator: None,
            bos_token: None,
        }
    }
}

impl Default for AblationConfig {
    fn default() -> Self {
        Self {
            kinds: vec![Kind::Resample],
            heads: Selection::Word("all".into()),
            resample: ResampleConfig::default(),
            seed: 0,
        }
    }
}

impl Default for ResampleConfig {
    fn default() -> Self {
        Self { samples: 1 }
    }
}

impl Default for AnalysisConfig {
    fn default() -> Self {
        Self { top_fraction: 0.02, sql: None }
    }
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        Self { device: "cpu".into(), batch: 0, threads: 0 }
    }
}

impl RuntimeConfig {
    pub fn thread_count(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            n => n,
        }
    }
}

impl Config {
    /// Reads `file` (or the built-in `quick.toml`), applies `overrides` (`key.path=value`) and validates the result.
    pub fn load(file: Option<&Path>, overrides: &[String]) -> Result<Self> {
        let (text, name) = match file {
            Some(path) => (
                std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read the configuration {}", path.display()))?,
                path.display().to_string(),
            ),
            None => (QUICK.to_string(), "pipeline/quick.toml (built in)".to_string()),
        };
        // Once on its own, so that an error points at a line of the file and not at a merged table.
        toml::from_str::<Config>(&text).with_context(|| format!("in the configuration {name}"))?;
        let mut table: toml::Table = toml::from_str(&text)?;
        for item in overrides {
            apply_override(&mut table, item)?;
        }
        let mut config: Config = table.try_into().context("in a --set option")?;
        config.ablation.kinds.sort();
        config.ablation.kinds.dedup();
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<()> {
        let c = &self.corpus;
        ensure!(c.prompt_len >= 2, "corpus.prompt_len is {}; a prompt needs at least 2 tokens", c.prompt_len);
        ensure!(
            c.tokens / c.prompt_len >= 2,
            "corpus.tokens = {} gives {} prompt(s) of {} tokens; at least 2 are needed (raise corpus.tokens)",
            c.tokens,
            c.tokens / c.prompt_len,
            c.prompt_len
        );
        ensure!(!self.ablation.kinds.is_empty(), "ablation.kinds is empty; name one of resample, mean, zero");
        ensure!(self.ablation.resample.samples >= 1, "ablation.resample.samples must be at least 1");
        let top = self.analysis.top_fraction;
        ensure!(top > 0.0 && top <= 1.0, "analysis.top_fraction is {top}; it must lie in (0, 1]");
        Ok(())
    }
}

/// `corpus.tokens=2000` into the table. The value is TOML; what is not TOML is a plain string.
fn apply_override(table: &mut toml::Table, item: &str) -> Result<()> {
    let Some((path, raw)) = item.split_once('=') else {
        bail!("--set {item}: expected key=value, for example --set corpus.tokens=2000");
    };
    let value = toml::from_str::<toml::Table>(&format!("value = {raw}"))
        .ok()
        .and_then(|mut t| t.remove("value"))
        .unwrap_or_else(|| toml::Value::String(raw.to_string()));
    let mut keys: Vec<&str> = path.trim().split('.').collect();
    let last = keys.pop().unwrap_or_default();
    let mut node = table;
    for key in keys {
        node = node
            .entry(key)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .with_context(|| format!("--set {item}: {key} is a value, not a section"))?;
    }
    node.insert(last.to_string(), value);
    Ok(())
}

impl Selection {
    /// The selected (layer, head) pairs, sorted.
    pub fn heads(&self, layers: usize, heads: usize) -> Result<Vec<(usize, usize)>> {
        let words = match self {
            Selection::Word(w) if w == "all" => {
                return Ok((0..layers).flat_map(|l| (0..heads).map(move |h| (l, h))).collect());
            }
            Selection::Word(w) => std::slice::from_ref(w),
            Selection::List(list) => list.as_slice(),
        };
        let mut out = std::collections::BTreeSet::new();
        for word in words {
            let parsed = parse_heads(word).with_context(|| {
                format!("ablation.heads: `{word}` is not understood; write \"all\", \"L20\", \"L20-29\" or \"L22H11\"")
            })?;
            let head_range = parsed.1.unwrap_or((0, heads - 1));
            ensure!(
                parsed.0.1 < layers,
                "ablation.heads: `{word}` names layer {}, but the model has layers 0 to {}",
                parsed.0.1,
                layers - 1
            );
            ensure!(
                head_range.1 < heads,
                "ablation.heads: `{word}` names head {}, but a layer of this model has heads 0 to {}",
                head_range.1,
                heads - 1
            );
            for l in parsed.0.0..=parsed.0.1 {
                out.extend((head_range.0..=head_range.1).map(|h| (l, h)));
            }
        }
        ensure!(!out.is_empty(), "ablation.heads selects no head");
        Ok(out.into_iter().collect())
    }
}

type Span = (usize, usize);

/// `L20-29H3` → ((20, 29), Some((3, 3))).
fn parse_heads(word: &str) -> Option<(Span, Option<Span>)> {
    let rest = word.strip_prefix('L')?;
    let (layers, heads) = match rest.split_once('H') {
        Some((l, h)) => (l, Some(parse_span(h)?)),
        None => (rest, None),
    };
    Some((parse_span(layers)?, heads))
}

fn parse_span(text: &str) -> Option<Span> {
    let (a, b) = match text.split_once('-') {
        Some((a, b)) => (a.parse().ok()?, b.parse().ok()?),
        None => (text.parse().ok()?, text.parse().ok()?),
    };
    (a <= b).then_some((a, b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selections_name_layers_heads_and_ranges() {
        let pick = |words: &[&str]| Selection::List(words.iter().map(|w| w.to_string()).collect()).heads(4, 2);
        assert_eq!(pick(&["L3H1", "L0"]).unwrap(), [(0, 0), (0, 1), (3, 1)]);
        assert_eq!(pick(&["L1-2H0"]).unwrap(), [(1, 0), (2, 0)]);
        assert_eq!(Selection::Word("all".into()).heads(2, 2).unwrap().len(), 4);
    }

    #[test]
    fn a_head_that_does_not_exist_is_named() {
        let error = Selection::Word("L1H7".into()).heads(4, 2).unwrap_err().to_string();
        assert!(error.contains("`L1H7` names head 7") && error.contains("heads 0 to 1"), "{error}");
        let error = Selection::Word("L9".into()).heads(4, 2).unwrap_err().to_string();
        assert!(error.contains("layer 9") && error.contains("0 to 3"), "{error}");
        assert!(Selection::Word("H3".into()).heads(4, 2).is_err());
        assert!(Selection::Word("L3-1".into()).heads(4, 2).is_err());
    }

    #[test]
    fn set_overrides_take_toml_values_and_bare_words() {
        let c = Config::load(None, &["ablation.heads=all".into(), "corpus.tokens=512".into()]).unwrap();
        assert!(matches!(c.ablation.heads, Selection::Word(w) if w == "all"));
        assert_eq!(c.corpus.tokens, 512);
        let c = Config::load(None, &["ablation.heads=[\"L0\"]".into(), "ablation.kinds=[\"zero\",\"mean\"]".into()]);
        assert_eq!(c.unwrap().ablation.kinds, [Kind::Mean, Kind::Zero]);
    }

    /// Every key, the commented ones included, with the default that the code has.
    #[test]
    fn the_quick_configuration_shows_every_key_and_its_default() {
        let uncommented: String = QUICK
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if rest.split_once(" = ").is_some_and(|(key, _)| !key.contains(' ')) => rest,
                _ => line,
            })
            .map(|line| format!("{line}\n"))
            .collect();
        let shown: toml::Table = toml::from_str(&uncommented).unwrap();
        let config: Config = shown.clone().try_into().unwrap();
        let default = toml::Table::try_from(Config::default()).unwrap();
        for (section, keys) in &default {
            for (key, value) in keys.as_table().unwrap() {
                let in_file = shown[section].get(key).unwrap_or_else(|| panic!("{section}.{key} is not shown"));
                if !["tokens", "heads"].contains(&key.as_str()) {
                    assert_eq!(in_file, value, "{section}.{key}");
                }
            }
        }
        assert!(config.corpus.separator.is_some() && config.corpus.bos_token.is_some());
    }

    #[test]
    fn unknown_keys_and_bad_values_are_errors() {
        let error = |set: &str| format!("{:#}", Config::load(None, &[set.to_string()]).unwrap_err());
        assert!(error("corpus.tokenz=5").contains("unknown field `tokenz`"));
        assert!(error("ablation.kinds=[\"remove\"]").contains("one or more of \"resample\", \"mean\", \"zero\""));
        assert!(error("ablation.heads=20.3").contains("expected \"all\" or a list"));
        assert_eq!(Config::load(None, &["ablation.kinds=zero".into()]).unwrap().ablation.kinds, [Kind::Zero]);
        assert!(error("corpus.tokens=130").contains("1 prompt(s)"));
        assert!(error("nonsense").contains("key=value"));
    }
}
