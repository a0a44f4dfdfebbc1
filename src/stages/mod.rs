//! The stages of a run, in the order in which they depend on each other. Each reads and writes files only, knows by a
//! fingerprint whether its output is current, and can be killed at any moment and resumed.

mod ablate;
mod activations;
mod iterate;
mod repair;
mod trace;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use arrow::array::{ArrayRef, StringArray, UInt16Array, UInt32Array};
use arrow::record_batch::RecordBatch;
use serde_json::json;

use crate::analyze;
use crate::components::Ablatable;
use crate::config::{Config, Kind, Mode};
use crate::corpus::{self, Prompts, Targets, TextTokenizer};
use crate::describe::memory;
use crate::export;
use crate::model::{Model, ModelSource};
use crate::progress;
use crate::report;
use crate::run_folder::{RunFolder, STAGES, Stage, fingerprint, sha256_of, sha256_of_file, write_atomically};
use crate::tables::{
    ABLATIONS, COMPONENT_REPAIRS, HEAD_SIMILARITY, MODEL, Metadata, NEURON_CURVES, NEURON_REPAIRS, NEURON_TOTALS,
    PAIRS, REPAIR_GRAPH, SCHEMA_VERSION, SELF_ADDITIONS, TOP_TOKENS, TableWriter,
};

/// A run with its inputs found and read as far as every stage needs.
pub struct Run {
    pub config: Config,
    pub folder: RunFolder,
    pub model: Model,
    model_sha256: String,
    corpus_files: Vec<PathBuf>,
    /// Fingerprint of every stage, in the order of [`Stage`].
    fingerprints: [String; 6],
    /// What is ablated, in the order of the tables.
    pub components: Vec<Ablatable>,
}

/// A stage's work; it returns what it did, for the line that is printed.
type Work = fn(&Run) -> Result<String>;

/// Brings `last` up to date, running what it needs before it. Returns the summary for the terminal.
pub fn run(config: Config, out: &Path, last: Stage, fresh: bool) -> Result<String> {
    let run = Run::open(config, out)?;
    if fresh {
        run.folder.forget()?;
    }
    let stages: [(Stage, Work); 6] = [
        (Stage::Corpus, Run::corpus),
        (Stage::Export, Run::export),
        (Stage::Trace, Run::trace),
        (Stage::Ablate, Run::ablate),
        (Stage::Analyze, Run::analyze),
        (Stage::Report, Run::report),
    ];
    run.announce();
    run.clear_what_is_stale()?;
    for (stage, work) in stages.into_iter().filter(|(s, _)| *s <= last) {
        run.bring_up_to_date(stage, work)?;
    }
    match last {
        Stage::Report => report::summary(run.folder.root()),
        _ => Ok(format!("{} is up to date in {}", last.name(), run.folder.root().display())),
    }
}

impl Run {
    /// Finds the model and the corpus (downloading packages), checks the configuration against them and takes the
    /// folder.
    fn open(config: Config, out: &Path) -> Result<Self> {
        let source = ModelSource::resolve(&config.model)?;
        let model = Model::open(source)?;
        let a = &model.architecture;
        ensure!(
            config.corpus.prompt_len <= a.context,
            "corpus.prompt_len = {} is longer than the model's context of {} positions",
            config.corpus.prompt_len,
            a.context
        );
        let components = config.ablation.components(a.layers, a.heads)?;
        let holds = config.ablation.holds(a.layers, a.heads)?;
        let neurons = config.neurons.layers.layers("neurons.layers", a.layers)?;
        let corpus_files = corpus::resolve(&config.corpus.source)?;

        let spinner = progress::spinner("reading the inputs' checksums");
        let files = model.source.files()?;
        let sums: Vec<String> = files.iter().map(|p| sha256_of_file(p)).collect::<Result<_>>()?;
        let model_sha256 = match sums.as_slice() {
            [one] => one.clone(),
            many => {
                let names = files.iter().map(|p| p.file_name().unwrap_or_default().to_string_lossy());
                let lines: String = many.iter().zip(names).map(|(sum, name)| format!("{sum}  {name}\n")).collect();
                sha256_of(lines.as_bytes())
            }
        };
        let corpus_sha256: Vec<String> = corpus_files.iter().map(|p| sha256_of_file(p)).collect::<Result<_>>()?;
        spinner.finish_and_clear();

        let code = (SCHEMA_VERSION, env!("CARGO_PKG_VERSION"));
        let c = &config;
        let corpus = fingerprint(&json!([code, &model_sha256, corpus_sha256, c.corpus]))?;
        // The tables name where the model came from; what is measured depends on its bytes alone.
        let export = fingerprint(&json!([code, c.model, &model_sha256, c.corpus.prompt_len]))?;
        let trace = fingerprint(&json!([code, corpus, &model_sha256, c.trace]))?;
        // The number of top tokens decides for which ones components and neurons are kept.
        let measured = json!([c.ablation, components, holds, c.neurons, neurons, c.iterative, c.analysis.top_fraction]);
        let ablate = fingerprint(&json!([code, corpus, &model_sha256, measured]))?;
        let analyze = fingerprint(&json!([ablate, c.analysis, analyze::queries_fingerprint()?]))?;
        let report = fingerprint(&json!([analyze, report::VERSION]))?;
        let inputs: Vec<PathBuf> = files.into_iter().chain(corpus_files.iter().cloned()).collect();
        let folder = RunFolder::open(out, fingerprint(&json!([export, trace, ablate, c.analysis]))?, &inputs)?;
        let fingerprints = [corpus, export, trace, ablate, analyze, report];
        Ok(Self { config, folder, model, model_sha256, corpus_files, fingerprints, components })
    }

    /// Says before anything heavy starts what the run will need.
    fn announce(&self) {
        let (a, c) = (&self.model.architecture, &self.config.corpus);
        if c.mode == Mode::Prompts {
            let text = format!("{} components on every prompt of {}", self.components.len(), c.source);
            return progress::line("run", &text);
        }
        let tokens = (c.tokens / c.prompt_len * (c.prompt_len - 1)) as f64;
        let samples = self.config.ablation.resample.samples as f64;
        let runs: f64 =
            self.config.ablation.kinds.iter().map(|&k| if k == Kind::Resample { samples } else { 1.0 }).sum();
        let runs = runs * (1 + self.config.ablation.hold.len()) as f64;
        let flops: f64 = self.components.iter().map(|c| a.suffix_flops(c)).sum::<f64>() * tokens * runs;
        let weights = 4.0 * a.parameters() as f64;
        // Measured: 37 bytes a row of `ablations`, 4 a row of `direct_effects`.
        let rows = self.config.ablation.kinds.len() as f64 * self.components.len() as f64 * tokens;
        let disk = weights + 37.0 * rows + 4.0 * tokens * (a.layers * (a.heads + 1)) as f64;
        progress::line(
            "run",
            &format!(
                "{} × {} components × {tokens} tokens: {:.1} TFLOP of necessary work; about {} of disk in {}, {} of memory",
                self.config.ablation.kinds.iter().map(|k| k.name()).collect::<Vec<_>>().join(", "),
                self.components.len(),
                flops / 1e12,
                progress::bytes(disk as u64),
                self.folder.root().display(),
                progress::bytes(memory(a) as u64),
            ),
        );
    }

    fn fingerprint(&self, stage: Stage) -> &str {
        &self.fingerprints[stage as usize]
    }

    fn meta(&self, stage: Stage) -> Metadata {
        Metadata { run_id: self.folder.run_id.clone(), fingerprint: self.fingerprint(stage).to_string() }
    }

    /// Removes what every stage, also one that will not run now, wrote under another configuration.
    fn clear_what_is_stale(&self) -> Result<()> {
        for stage in STAGES {
            if self.folder.is_stale(stage, self.fingerprint(stage)) {
                self.folder.clear(stage, &self.folders(stage))?;
            }
        }
        Ok(())
    }

    fn bring_up_to_date(&self, stage: Stage, work: Work) -> Result<()> {
        if self.folder.is_current(stage, self.fingerprint(stage)) {
            progress::line(stage.name(), "up to date");
            return Ok(());
        }
        let folders = self.folders(stage);
        let started = Instant::now();
        self.folder.begin(stage, self.fingerprint(stage), &folders)?;
        let done = work(self)?;
        self.folder.finish(stage, self.fingerprint(stage), &folders)?;
        progress::line(stage.name(), &format!("{done}, {}", progress::seconds(started.elapsed().as_secs_f64())));
        Ok(())
    }

    /// The folders a stage owns: nothing else writes there.
    fn folders(&self, stage: Stage) -> Vec<PathBuf> {
        let f = &self.folder;
        match stage {
            Stage::Corpus => vec![f.table("tokens"), f.table("targets")],
            Stage::Export => vec![f.model(), f.table("model")],
            Stage::Trace => vec![f.table("clean"), f.table("direct_effects"), f.work(), f.activations()],
            Stage::Ablate => {
                let tables = [
                    &PAIRS,
                    &TOP_TOKENS,
                    &ABLATIONS,
                    &COMPONENT_REPAIRS,
                    &NEURON_REPAIRS,
                    &NEURON_TOTALS,
                    &NEURON_CURVES,
                    &REPAIR_GRAPH,
                    &SELF_ADDITIONS,
                    &HEAD_SIMILARITY,
                ];
                tables.iter().map(|table| f.table(table.name)).chain([f.sums()]).collect()
            }
            Stage::Analyze => analyze::derived_tables().iter().map(|name| f.table(name)).collect(),
            Stage::Report => vec![f.root().join("report"), f.root().join("figures")],
        }
    }

    fn corpus(&self) -> Result<String> {
        let tokenizer = TextTokenizer::of(&self.model)?;
        let prompts = corpus::prompts(&self.config.corpus, &self.corpus_files, &tokenizer)?;
        corpus::write(&prompts, &tokenizer, &self.folder.table("tokens"), &self.meta(Stage::Corpus))?;
        corpus::write_targets(&prompts, &self.folder.table("targets"), &self.meta(Stage::Corpus))?;
        Ok(match prompts.targets() {
            Targets::Next => format!("{} prompts of {} tokens", prompts.count(), prompts.longest()),
            Targets::Answers(_) => format!("{} prompts of up to {} tokens", prompts.count(), prompts.longest()),
        })
    }

    fn export(&self) -> Result<String> {
        export::export(&self.model, self.config.corpus.prompt_len, &self.folder.model())?;
        self.write_model_table()?;
        let a = &self.model.architecture;
        Ok(format!(
            "{} ({}, {} layers of {} heads, width {}, {:.0} M parameters) as ONNX",
            self.model.source.origin().name,
            a.family,
            a.layers,
            a.heads,
            a.d_model,
            a.parameters() as f64 / 1e6
        ))
    }

    fn write_model_table(&self) -> Result<()> {
        let (a, origin) = (&self.model.architecture, self.model.source.origin());
        let text = |s: &str| Arc::new(StringArray::from(vec![s])) as ArrayRef;
        let small = |n: usize| Arc::new(UInt16Array::from(vec![n as u16])) as ArrayRef;
        let int = |n: usize| Arc::new(UInt32Array::from(vec![n as u32])) as ArrayRef;
        let columns = vec![
            text(&origin.name),
            text(&a.family),
            small(a.layers),
            small(a.heads),
            int(a.d_model),
            int(a.d_mlp),
            int(a.vocab),
            text(&a.dtype),
            text(&origin.source),
            text(&origin.revision),
            text(&self.model_sha256),
        ];
        let path = self.folder.table("model").join("model.parquet");
        let mut writer = TableWriter::create(&MODEL, &path, &self.meta(Stage::Export))?;
        writer.write(&RecordBatch::try_new(MODEL.schema(), columns)?)?;
        writer.finish()
    }

    fn trace(&self) -> Result<String> {
        trace::trace(self, &self.prompts()?)
    }

    fn ablate(&self) -> Result<String> {
        ablate::ablate(self, &self.prompts()?)
    }

    fn analyze(&self) -> Result<String> {
        analyze::analyze(self.folder.root(), &self.config.analysis, &self.meta(Stage::Analyze))
    }

    fn report(&self) -> Result<String> {
        write_atomically(
            &self.folder.root().join("report").join("config.toml"),
            toml::to_string(&self.config)?.as_bytes(),
        )?;
        report::report(self.folder.root())
    }

    /// The prompts as the tables of the corpus stage have them.
    fn prompts(&self) -> Result<Prompts> {
        corpus::read(&self.folder.table("tokens"), &self.folder.table("targets"))
    }

    fn has(&self, kind: Kind) -> bool {
        self.config.ablation.kinds.contains(&kind)
    }

    /// Prompts in one call of a graph, so that a call has about as many rows as the configuration (or experience:
    /// activations of more rows fall out of the cache) asks for.
    fn rows_in_call(&self) -> usize {
        match self.config.runtime.batch {
            0 => 1200,
            n => n,
        }
    }
}

/// `items` in as few groups of at most `most` as possible, of sizes that differ by at most one.
fn balanced<T>(items: &[T], most: usize) -> impl Iterator<Item = &[T]> {
    let groups = items.len().div_ceil(most.max(1)).max(1);
    (0..groups).map(move |g| &items[g * items.len() / groups..(g + 1) * items.len() / groups])
}

#[cfg(test)]
mod tests {
    use super::balanced;

    #[test]
    fn groups_are_even_and_complete() {
        let items: Vec<usize> = (0..10).collect();
        let sizes: Vec<usize> = balanced(&items, 9).map(<[usize]>::len).collect();
        assert_eq!(sizes, [5, 5]);
        assert_eq!(balanced(&items, 3).flatten().count(), 10);
        assert!(balanced(&items, 3).all(|g| g.len() <= 3));
        assert_eq!(balanced(&items[..0], 3).flatten().count(), 0);
    }
}
