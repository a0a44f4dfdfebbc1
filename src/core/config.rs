//! The configuration of a run: the TOML file, its documented defaults, and `--set key=value`.
//!
//! A configuration has three layers, later ones winning: the defaults below, the file (`pipeline/quick.toml` when none
//! is named), and the `--set` options. Unknown keys are errors, because a misspelt key that is silently ignored gives a
//! wrong result.

mod limits;
mod one_or_list;

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::components::{Ablatable, Component, Hold, Selection};
use crate::precision::Precision;
use crate::untrusted::read_text;
use limits::{MOST_BYTES, check_depth};
use one_or_list::one_or_list;

/// The configuration used when `--config` is not given.
pub const QUICK: &str = include_str!("../../pipeline/quick.toml");

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub model: ModelConfig,
    pub corpus: CorpusConfig,
    pub ablation: AblationConfig,
    pub neurons: NeuronsConfig,
    pub iterative: IterativeConfig,
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
    /// `package:news`, `hf:owner/name` (a data set), or a `.txt` (one document per line), `.jsonl`, `.jsonl.gz`, `.jsonl.zst` or `.parquet` file.
    pub source: String,
    /// The column or JSON key that holds a document (or a prompt).
    pub text_column: String,
    /// `packed`: documents are joined and cut into prompts of equal length, and every next token is measured.
    /// `prompts`: one prompt per row, with the token to measure in `answer` (and, for a difference, `wrong`).
    pub mode: Mode,
    /// Tokens to measure; prompts = tokens / prompt_len, rounded down. Not used in a prompt set.
    pub tokens: usize,
    /// Tokens in a prompt, the BOS included; of a prompt set, the most a prompt may have.
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
    /// Layers whose whole MLP is ablated: `"all"`, or a list of `"L20"`, `"L20-29"`.
    pub mlps: Selection,
    /// Layers whose whole attention is ablated.
    pub attention: Selection,
    /// Layers that are ablated whole: with `zero`, the next layer reads the stream before this one.
    pub blocks: Selection,
    /// Later components to hold at their clean values, besides the measurement without a hold: `"erasers"`, `"heads"`,
    /// `"mlps"`, `"last_mlp"`, `"L28H3"`, `"MLP29"`. Each is measured on its own.
    #[serde(deserialize_with = "one_or_list")]
    pub hold: Vec<String>,
    /// Also measure the whole distribution of every ablated run (slow: an unembedding a token and ablation).
    pub distribution: bool,
    pub resample: ResampleConfig,
    /// Draws the resample partners.
    pub seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Packed,
    Prompts,
}

/// Which MLPs' neurons are measured one by one, on each ablated head's top tokens.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NeuronsConfig {
    /// `["last"]`, `"all"`, or a list of `"L20"`, `"L20-29"`; `[]` for none.
    pub layers: Selection,
    /// Neurons kept of each token, those that repair most.
    pub top_k: usize,
}

/// Iterative inference: what a head, and what the rest of the model, does after the head's output was added to the stream.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IterativeConfig {
    /// Prompts to measure it on, from the first; 0 leaves it out.
    pub prompts: usize,
    /// Multiples of the head's output that are added.
    pub multiples: Vec<f64>,
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
    #[serde(deserialize_with = "one_or_list")]
    pub save: Vec<Activation>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AnalysisConfig {
    /// The share of tokens with the highest direct effect that counts as a head's "top" tokens.
    pub top_fraction: f64,
    /// A folder of the user's own queries, each a table.
    pub sql: Option<String>,
    /// Tokens whose absolute direct effect exceeds each of these are summarised apart, in logits.
    pub thresholds: Vec<f64>,
    /// Bytes of memory that queries may take, as `runtime.memory` says; 0 takes a share of what is free.
    #[serde(skip)]
    pub memory: u64,
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
    /// Bytes of memory a run may take, to which the batch is fitted; 0 takes what is free.
    pub memory: u64,
    /// Precision of a block's projections: `fp32`, `bf16`, `fp16`, or, on a GPU, `tf32`. The error against `fp32` is
    /// measured on the first shard (table `rounding`). A CPU computes as in `fp32`, with the same rounding.
    pub precision: Precision,
    /// Folder for ONNX Runtime's profiles; `bench` sets it.
    #[serde(skip)]
    pub profile: Option<std::path::PathBuf>,
    /// Whether engines measure the machine's own speed between pieces of work; `bench` sets it.
    #[serde(skip)]
    pub probe: bool,
    /// Whether all layers are in memory at once, or loaded in turn. `None`: all of them, if they fit. A run sets what its
    /// results were begun with.
    #[serde(skip)]
    pub all_layers: Option<bool>,
}

/// What a head's output is replaced by, at all positions at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The head's mean `z` over all prompts and positions.
    Mean,
    /// The part of its output along the correct token's direction `u`, and nothing else.
    ProjectOnly,
    /// Its output without the part along `u`.
    ProjectOut,
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
            Kind::ProjectOnly => "project_only",
            Kind::ProjectOut => "project_out",
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
    #[serde(
        untagged,
        expecting = "expected one or more of \"resample\", \"mean\", \"zero\", \"project_out\", \"project_only\""
    )]
    enum Kinds {
        One(Kind),
        Several(Vec<Kind>),
    }
    Ok(match Kinds::deserialize(deserializer)? {
        Kinds::One(kind) => vec![kind],
        Kinds::Several(kinds) => kinds,
    })
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
            mode: Mode::Packed,
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
            mlps: Selection::none(),
            attention: Selection::none(),
            blocks: Selection::none(),
            hold: vec![],
            distribution: false,
            resample: ResampleConfig::default(),
            seed: 0,
        }
    }
}

impl Default for NeuronsConfig {
    fn default() -> Self {
        Self { layers: Selection::List(vec!["last".into()]), top_k: 10 }
    }
}

impl Default for IterativeConfig {
    fn default() -> Self {
        Self { prompts: 0, multiples: vec![1.0, 3.0, 5.0] }
    }
}

impl Default for ResampleConfig {
    fn default() -> Self {
        Self { samples: 1 }
    }
}

impl Default for AnalysisConfig {
    fn default() -> Self {
        Self { top_fraction: 0.02, sql: None, thresholds: vec![0.1, 0.5, 1.0], memory: 0 }
    }
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        Self {
            device: "cpu".into(),
            batch: 0,
            threads: 0,
            memory: 0,
            precision: Precision::Fp32,
            profile: None,
            probe: false,
            all_layers: None,
        }
    }
}

impl RuntimeConfig {
    pub fn thread_count(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            n => n,
        }
    }

    /// Engines that run at the same time: one per thread; on a GPU, one.
    pub fn engine_count(&self) -> usize {
        if self.device == "cpu" { self.thread_count() } else { 1 }
    }
}

impl Config {
    /// Reads `file` (or the built-in `quick.toml`), applies `overrides` (`key.path=value`) and validates the result.
    pub fn load(file: Option<&Path>, overrides: &[String]) -> Result<Self> {
        let (text, name) = match file {
            Some(path) => (
                read_text(path, MOST_BYTES)
                    .with_context(|| format!("cannot read the configuration {}", path.display()))?,
                path.display().to_string(),
            ),
            None => (QUICK.to_string(), "pipeline/quick.toml (built in)".to_string()),
        };
        check_depth(&text).with_context(|| format!("in the configuration {name}"))?;
        // Once on its own, so that an error points at a line of the file and not at a merged table.
        toml::from_str::<Config>(&text).with_context(|| format!("in the configuration {name}"))?;
        let mut table: toml::Table = toml::from_str(&text)?;
        for item in overrides {
            apply_override(&mut table, item)?;
        }
        let mut config: Config = table.try_into().context("in a --set option")?;
        config.ablation.kinds.sort();
        config.ablation.kinds.dedup();
        config.analysis.memory = config.runtime.memory;
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<()> {
        self.check_limits()?;
        let c = &self.corpus;
        ensure!(
            c.mode == Mode::Prompts || c.tokens / c.prompt_len >= 2,
            "corpus.tokens = {} gives {} prompt(s) of {} tokens; at least 2 are needed (raise corpus.tokens)",
            c.tokens,
            c.tokens / c.prompt_len,
            c.prompt_len
        );
        ensure!(!self.ablation.kinds.is_empty(), "ablation.kinds is empty; name one of resample, mean, zero");
        let multiples = &self.iterative.multiples;
        ensure!(
            multiples.iter().all(|m| m.abs() <= 1e6),
            "iterative.multiples are {multiples:?}; expected numbers from -1000000 to 1000000"
        );
        ensure!(
            self.runtime.precision != Precision::Tf32 || self.runtime.device != "cpu",
            "runtime.precision = \"tf32\" is a mode of NVIDIA cards: it goes with runtime.device = \"cuda\""
        );
        let top = self.analysis.top_fraction;
        ensure!(top > 0.0 && top <= 1.0, "analysis.top_fraction is {top}; it must lie in (0, 1]");
        let thresholds = &self.analysis.thresholds;
        ensure!(thresholds.iter().all(|t| *t >= 0.0 && t.is_finite()), "analysis.thresholds must be numbers from 0 on");
        Ok(())
    }
}

/// `corpus.tokens=2000` into the table. The value is TOML; what is not TOML is a plain string.
fn apply_override(table: &mut toml::Table, item: &str) -> Result<()> {
    let Some((path, raw)) = item.split_once('=') else {
        bail!("--set {item}: expected key=value, for example --set corpus.tokens=2000");
    };
    ensure!(item.len() as u64 <= MOST_BYTES, "--set {path}: it has more than {MOST_BYTES} bytes");
    check_depth(item).with_context(|| "in a --set option")?;
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

impl AblationConfig {
    /// All components to ablate in a model of that many layers and heads, sorted.
    pub fn components(&self, layers: usize, heads: usize) -> Result<Vec<Ablatable>> {
        let mut out: Vec<Ablatable> = self
            .heads
            .heads("ablation.heads", layers, heads)?
            .into_iter()
            .map(|(layer, head)| Ablatable { component: Component::Head, layer, head: Some(head) })
            .collect();
        let whole = [
            ("ablation.mlps", Component::Mlp, &self.mlps),
            ("ablation.attention", Component::Attention, &self.attention),
            ("ablation.blocks", Component::Block, &self.blocks),
        ];
        for (key, component, selection) in whole {
            let layers = selection.layers(key, layers)?;
            out.extend(layers.into_iter().map(|layer| Ablatable { component, layer, head: None }));
        }
        ensure!(
            !out.is_empty(),
            "nothing to ablate: ablation.heads, ablation.mlps, ablation.attention and ablation.blocks are all empty"
        );
        out.sort();
        Ok(out)
    }

    /// Every hold to measure, also `none`, in the order of their names.
    pub fn holds(&self, layers: usize, heads: usize) -> Result<Vec<Hold>> {
        let parsed = self.hold.iter().map(|text| Hold::parse(text, layers, heads));
        let mut out: Vec<Hold> = parsed.chain([Ok(Hold::None)]).collect::<Result<_>>()?;
        out.sort_by_key(|hold| hold.name());
        out.dedup();
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_sort_as_the_table_does_and_something_must_be_ablated() {
        let mut config = AblationConfig { mlps: Selection::Word("L1".into()), ..Default::default() };
        let names =
            |c: &AblationConfig| -> Vec<String> { c.components(2, 1).unwrap().iter().map(|a| a.to_string()).collect() };
        assert_eq!(names(&config), ["L0H0", "L1H0", "MLP1"]);
        config.heads = Selection::none();
        config.blocks = Selection::Word("all".into());
        assert_eq!(names(&config), ["BLOCK0", "BLOCK1", "MLP1"]);
        (config.mlps, config.blocks) = (Selection::none(), Selection::none());
        assert!(config.components(2, 1).unwrap_err().to_string().contains("nothing to ablate"));
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
