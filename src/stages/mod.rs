//! The stages of a run, in the order in which they depend on each other. Each reads and writes files only, knows by a
//! fingerprint whether its output is current, and can be killed at any moment and resumed.

mod ablate;
mod activations;
mod doubts;
mod iterate;
mod parts;
mod plan;
mod repair;
mod shared;
mod trace;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use arrow::array::{ArrayRef, StringArray, UInt16Array, UInt32Array};
use arrow::record_batch::RecordBatch;
use serde_json::json;

use crate::analyze;
use crate::components::Ablatable;
use crate::config::{Config, Kind, Mode};
use crate::corpus::{self, Prompts, Targets, TextTokenizer};
use crate::export;
use crate::hub;
use crate::interrupt;
use crate::memory;
use crate::model::{Model, ModelSource};
use crate::progress;
use crate::report;
use crate::run_folder::{
    Parts, RunFolder, STAGES, Stage, files_below, fingerprint, sha256_of, sha256_of_file, write_atomically,
};
use crate::sharing::ShardSet;
use crate::status::state;
use crate::tables::{
    ABLATIONS, COMPONENT_REPAIRS, HEAD_SIMILARITY, MODEL, Metadata, NEURON_CURVES, NEURON_REPAIRS, NEURON_TOTALS,
    PAIRS, REPAIR_GRAPH, ROUNDING, SCHEMA_VERSION, SELF_ADDITIONS, STREAM_ADDITIONS, TOP_TOKENS, TableWriter,
};

pub use plan::{Estimate, dry_run};
pub use repair::{AblatedComponent, Repair, Slots, repair};
pub use shared::run_set;

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
    /// What `analyze` writes, a user's own tables included.
    analysis_tables: Vec<String>,
    /// Rows in one call of a graph; fewer when memory turns out to be short.
    rows: AtomicUsize,
}

/// A configuration with its inputs found and read as far as every stage needs, before a folder is taken for it.
pub struct Prepared {
    pub config: Config,
    pub model: Model,
    /// What is ablated, in the order of the tables.
    pub components: Vec<Ablatable>,
    model_sha256: String,
    corpus_files: Vec<PathBuf>,
    /// Every file that is read.
    inputs: Vec<PathBuf>,
    fingerprints: [String; 6],
    /// What the fingerprints are made of, by name.
    parts: [Parts; 6],
    run_id: String,
}

/// A stage's work; it returns what it did, for the line that is printed.
type Work = fn(&Run) -> Result<String>;

/// Brings `last` up to date, running what it needs before it. Returns the summary for the terminal.
pub fn run(config: Config, out: &Path, last: Stage, fresh: bool) -> Result<String> {
    let run = Run::open(config, out)?;
    if fresh {
        run.folder.forget()?;
    }
    run.announce();
    run.clear_what_is_stale()?;
    run.bring_up_to(last)?;
    run.summary(last)
}

impl Prepared {
    /// Finds the model and the corpus (downloading packages) and checks the configuration against them.
    pub fn of(config: Config) -> Result<Self> {
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
        let sums: Vec<String> = files.iter().map(|p| sha256_of_input(p)).collect::<Result<_>>()?;
        let model_sha256 = match sums.as_slice() {
            [one] => one.clone(),
            many => {
                let names = files.iter().map(|p| p.file_name().unwrap_or_default().to_string_lossy());
                let lines: String = many.iter().zip(names).map(|(sum, name)| format!("{sum}  {name}\n")).collect();
                sha256_of(lines.as_bytes())
            }
        };
        let corpus_sha256: Vec<String> = corpus_files.iter().map(|p| sha256_of_input(p)).collect::<Result<_>>()?;
        spinner.finish_and_clear();

        let code = (SCHEMA_VERSION, env!("CARGO_PKG_VERSION"));
        let c = &config;
        let corpus = fingerprint(&json!([code, &model_sha256, corpus_sha256, c.corpus]))?;
        // The tables name where the model came from; what is measured depends on its bytes alone.
        let export = fingerprint(&json!([code, c.model, &model_sha256, c.corpus.prompt_len]))?;
        let trace = fingerprint(&json!([code, corpus, &model_sha256, c.trace, c.runtime.precision]))?;
        // The number of top tokens decides for which ones components and neurons are kept.
        let measured = json!([c.ablation, components, holds, c.neurons, neurons, c.iterative, c.analysis.top_fraction]);
        let ablate = fingerprint(&json!([code, corpus, &model_sha256, measured, c.runtime.precision]))?;
        let analyze = fingerprint(&json!([ablate, c.analysis, analyze::queries_fingerprint(&c.analysis)?]))?;
        let report = fingerprint(&json!([analyze, report::VERSION]))?;
        let inputs: Vec<PathBuf> = files.into_iter().chain(corpus_files.iter().cloned()).collect();
        let run_id = fingerprint(&json!([export, trace, ablate, c.analysis]))?;
        let parts = parts::parts(c, &model_sha256, &corpus_sha256)?;
        let fingerprints = [corpus, export, trace, ablate, analyze, report];
        Ok(Self { config, model, components, model_sha256, corpus_files, inputs, fingerprints, parts, run_id })
    }

    pub fn fingerprint(&self, stage: Stage) -> &str {
        &self.fingerprints[stage as usize]
    }

    pub fn parts(&self, stage: Stage) -> &Parts {
        &self.parts[stage as usize]
    }
}

impl Run {
    /// Finds the inputs of a configuration and takes the folder for it.
    pub fn open(config: Config, out: &Path) -> Result<Self> {
        Self::open_with(config, out, None)
    }

    /// As [`Run::open`]; of a set of shards, without taking the folder yet.
    fn open_with(config: Config, out: &Path, set: Option<ShardSet>) -> Result<Self> {
        let Prepared { config, model, components, model_sha256, corpus_files, inputs, fingerprints, parts, run_id } =
            Prepared::of(config)?;
        let folder = RunFolder::open(out, run_id, &inputs, set)?.with_parts(parts);
        let analysis_tables = analyze::tables_of(&config.analysis)?;
        let wanted = memory::rows_wanted(&config.runtime);
        let fit = memory::rows_that_fit(&config.runtime, &model.architecture, config.corpus.prompt_len);
        if fit < wanted {
            progress::line("memory", &format!("batches of {fit} rows instead of {wanted}: more would not fit"));
        }
        let rows = AtomicUsize::new(wanted.min(fit));
        Ok(Self { config, folder, model, model_sha256, corpus_files, fingerprints, components, analysis_tables, rows })
    }

    /// Says before anything heavy starts what the run will need.
    fn announce(&self) {
        let Some(Estimate { flops, iterate_flops, tokens, disk, memory }) =
            Estimate::of(&self.config, &self.model.architecture, &self.components)
        else {
            let text = format!("{} components on every prompt of {}", self.components.len(), self.config.corpus.source);
            return progress::line("run", &text);
        };
        progress::line(
            "run",
            &format!(
                "{} × {} components × {tokens} tokens: {:.1} TFLOP of necessary work; about {} of disk in {}, {} of memory",
                self.config.ablation.kinds.iter().map(|k| k.name()).collect::<Vec<_>>().join(", "),
                self.components.len(),
                (flops + iterate_flops) / 1e12,
                progress::bytes(disk as u64),
                self.folder.root().display(),
                progress::bytes(memory as u64),
            ),
        );
    }

    /// What to say at the end.
    fn summary(&self, last: Stage) -> Result<String> {
        match last {
            Stage::Report => report::summary(self.folder.root()),
            _ => Ok(format!("{} is up to date in {}", last.name(), self.folder.root().display())),
        }
    }

    fn fingerprint(&self, stage: Stage) -> &str {
        &self.fingerprints[stage as usize]
    }

    fn meta(&self, stage: Stage) -> Metadata {
        Metadata {
            run_id: self.folder.run_id.clone(),
            fingerprint: self.fingerprint(stage).to_string(),
            ledger: Some(self.folder.ledger(stage).clone()),
        }
    }

    /// Removes what every stage, also one that will not run now, wrote under another configuration.
    fn clear_what_is_stale(&self) -> Result<()> {
        for stage in STAGES {
            if self.folder.is_stale(stage, self.fingerprint(stage)) {
                let wanted = (self.fingerprint(stage), self.folder.parts(stage));
                progress::line(
                    stage.name(),
                    &format!("cleared: {}", state(self.folder.root(), stage, Some(wanted)).why()),
                );
                self.folder.clear(stage, &self.folders(stage))?;
            }
        }
        Ok(())
    }

    /// Every stage up to `last`, in order, as far as it is not current.
    pub fn bring_up_to(&self, last: Stage) -> Result<()> {
        self.drop_what_is_damaged(last)?;
        self.go_on_to(last)
    }

    /// As [`Run::bring_up_to`], when what earlier stages wrote was written a moment ago.
    pub fn go_on_to(&self, last: Stage) -> Result<()> {
        let stages: [(Stage, Work); 6] = [
            (Stage::Corpus, Run::corpus),
            (Stage::Export, Run::export),
            (Stage::Trace, Run::trace),
            (Stage::Ablate, Run::ablate),
            (Stage::Analyze, Run::analyze),
            (Stage::Report, Run::report),
        ];
        let wanted = stages.into_iter().filter(|(s, _)| *s <= last);
        wanted.into_iter().try_for_each(|(stage, work)| self.bring_up_to_date(stage, work))
    }

    /// Compares what a stage is about to read with what was written. A file with other bytes is removed, so that the
    /// stage that wrote it makes it anew, and only it.
    fn drop_what_is_damaged(&self, last: Stage) -> Result<()> {
        let current = |stage: Stage| self.folder.is_current(stage, self.fingerprint(stage));
        let Some(reader) = STAGES.into_iter().filter(|&s| s <= last && !current(s)).max() else { return Ok(()) };
        let spinner = progress::spinner("comparing checksums");
        for stage in STAGES.into_iter().filter(|&s| s < reader && current(s)) {
            for path in self.folder.damaged(stage) {
                progress::line(
                    stage.name(),
                    &format!("{} has changed since it was written; made anew", path.display()),
                );
                std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        spinner.finish_and_clear();
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
        interrupt::check()?;
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
                    &STREAM_ADDITIONS,
                    &HEAD_SIMILARITY,
                    &ROUNDING,
                ];
                tables.iter().map(|table| f.table(table.name)).chain([f.sums()]).collect()
            }
            Stage::Analyze => self.analysis_tables.iter().map(|name| f.table(name)).collect(),
            Stage::Report => vec![f.root().join("report"), f.root().join("figures")],
        }
    }

    fn corpus(&self) -> Result<String> {
        let tokenizer = TextTokenizer::of(&self.model)?;
        tokenizer.doubts().into_iter().for_each(|doubt| self.folder.warn(doubt));
        let corpus = corpus::corpus(&self.config.corpus, &self.corpus_files, &tokenizer)?;
        let prompts = &corpus.prompts;
        corpus::write(&corpus, &tokenizer, &self.folder.table("tokens"), &self.meta(Stage::Corpus))?;
        corpus::write_targets(prompts, &self.folder.table("targets"), &self.meta(Stage::Corpus))?;
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
        let done = trace::trace(self, &self.prompts()?)?;
        if let Some(doubt) = doubts::about_predictions(self)? {
            self.folder.warn(doubt);
        }
        Ok(done)
    }

    fn ablate(&self) -> Result<String> {
        ablate::ablate(self, &self.prompts()?)
    }

    fn analyze(&self) -> Result<String> {
        let done = analyze::analyze(self.folder.root(), &self.config.analysis, &self.meta(Stage::Analyze));
        if done.is_err() {
            // What a failed check speaks against must not be there to be read.
            for folder in self.folders(Stage::Analyze) {
                for path in files_below(&folder)? {
                    std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
                }
            }
        }
        done
    }

    fn report(&self) -> Result<String> {
        write_atomically(
            &self.folder.root().join("report").join("config.toml"),
            toml::to_string(&self.config)?.as_bytes(),
        )?;
        report::report(self.folder.root())
    }

    /// Necessary floating-point operations of the clean pass: every weight of every block, the directions, and the
    /// unembedding, times two a token.
    pub fn trace_flops(&self, prompts: &Prompts) -> f64 {
        let a = &self.model.architecture;
        let (attention, mlp) = a.block_weights();
        let directions = a.layers * a.d_model * a.heads * a.d_head;
        let weights = a.layers * (attention + mlp) + directions + a.vocab * a.d_model;
        2.0 * (weights * prompts.tokens()) as f64
    }

    /// Necessary floating-point operations of all ablations: clean passes are not counted.
    pub fn ablate_flops(&self, prompts: &Prompts) -> f64 {
        let a = &self.model.architecture;
        let c = &self.config.ablation;
        let samples = |kind: &Kind| if *kind == Kind::Resample { c.resample.samples } else { 1 };
        let runs = c.kinds.iter().map(samples).sum::<usize>() * (1 + c.hold.len());
        let tokens: usize = (0..prompts.count()).map(|p| prompts.needed(p).len()).sum();
        self.components.iter().map(|c| a.suffix_flops(c)).sum::<f64>() * (runs * tokens) as f64
    }

    /// The prompts as the tables of the corpus stage have them.
    pub fn prompts(&self) -> Result<Prompts> {
        let targets = self.folder.table("targets");
        ensure!(
            self.config.corpus.mode == Mode::Packed || targets.join("targets.parquet").exists(),
            "{} has vanished; run again to have it made anew",
            targets.join("targets.parquet").display()
        );
        corpus::read(&self.folder.table("tokens"), &targets)
    }

    fn has(&self, kind: Kind) -> bool {
        self.config.ablation.kinds.contains(&kind)
    }

    /// About how many rows (runs × positions) one call of a graph has.
    fn rows_in_call(&self) -> usize {
        self.rows.load(Relaxed)
    }

    /// Prompts of a shard, grouped by length, in batches that fill a call and leave none of the engines without work.
    fn batches_of(
        &self,
        by_length: Vec<Vec<usize>>,
        length: impl Fn(usize) -> usize,
        engines: usize,
    ) -> Vec<Vec<usize>> {
        let batches = by_length.iter().flat_map(|equal| {
            let most = (self.rows_in_call() / length(equal[0])).min(equal.len().div_ceil(engines));
            balanced(equal, most).map(<[usize]>::to_vec)
        });
        batches.collect()
    }

    /// After a call of so many rows found no memory: smaller calls from now on. False if a call is already as small as
    /// one run of `length` positions.
    fn shrink(&self, rows: usize, length: usize) -> bool {
        if rows <= length {
            return false;
        }
        let half = (rows / 2).max(length);
        // Another thread may have done so already.
        if self.rows.fetch_min(half, Relaxed) > half {
            progress::line("memory", &format!("none left for batches of {rows} rows; going on with {half}"));
        }
        true
    }
}

/// The checksum of a file that is read. One in the hub's cache must be what the hub gave.
fn sha256_of_input(path: &Path) -> Result<String> {
    let sha256 = sha256_of_file(path)?;
    hub::check_cached(path, &sha256)?;
    Ok(sha256)
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
