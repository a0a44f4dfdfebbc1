//! The stages of a run, in the order in which they depend on each other. A stage only reads and writes files. Its
//! fingerprint says whether its output is current. It can be killed at any moment and resumed.

mod foreign;
mod parts;
mod plan;
mod sanity_checks;
mod sharded_run;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use arrow::array::{ArrayRef, StringArray, UInt16Array, UInt32Array};
use arrow::record_batch::RecordBatch;
use selfrepair_core::components::Ablatable;
use selfrepair_core::config::{Config, Mode};
use selfrepair_core::files::{fingerprint, sha256_of, sha256_of_file, write_atomically};
use selfrepair_core::interrupt;
use selfrepair_core::own_files;
use selfrepair_core::progress;
use selfrepair_core::prompts::{Prompts, Targets};
use selfrepair_core::shards::ShardSet;
use selfrepair_core::tables::{
    ABLATIONS, COMPONENT_REPAIRS, HEAD_SIMILARITY, MODEL, NEURON_CURVES, NEURON_REPAIRS, NEURON_TOTALS, PAIRS,
    REPAIR_GRAPH, ROUNDING, SELF_ADDITIONS, STREAM_ADDITIONS, TOP_TOKENS,
};
use selfrepair_engine::export;
use selfrepair_measure::{self as measure, MeasureContext, RowsPerCall};
use selfrepair_model::corpus::{self, TextTokenizer};
use selfrepair_model::{Model, ModelSource, hub};
use selfrepair_query::analyze;
use selfrepair_report as report;
use selfrepair_store::run_folder;
use selfrepair_store::run_folder::{Parts, RunFolder, STAGES, Stage};
use selfrepair_store::{Metadata, StageFiles, TableWriter, prompt_tables};

use crate::status::state;
use selfrepair_store::locks::ReportLock;

pub use plan::{Estimate, dry_run};
pub use sharded_run::run_set;

/// A run, with its inputs located and its folder locked.
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
    rows: RowsPerCall,
}

/// A configuration with its inputs located and read as far as every stage needs, before a folder is locked.
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

/// The work of a stage. Returns a summary for the progress line.
type Work = fn(&Run) -> Result<String>;

/// Runs `last` and the stages before it; reuses cached work. Returns the summary for the terminal.
pub fn run(config: Config, out: &Path, last: Stage, fresh: bool) -> Result<String> {
    let run = Run::open(config, out)?;
    run.refuse_foreign(last, fresh)?;
    if fresh {
        run.folder.forget()?;
    }
    run.announce();
    run.clear_stale()?;
    run.ensure_up_to(last)?;
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
        config.ablation.holds(a.layers, a.heads)?;
        config.neurons.layers.layers("neurons.layers", a.layers)?;
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
        spinner.finish();

        let parts = parts::parts(&config, &model_sha256, &corpus_sha256)?;
        let hashes: Vec<String> = parts.iter().map(fingerprint).collect::<Result<_>>()?;
        let fingerprints: [String; 6] = hashes.try_into().map_err(|_| anyhow!("six stages have six fingerprints"))?;
        let inputs: Vec<PathBuf> = files.into_iter().chain(corpus_files.iter().cloned()).collect();
        let run_id = fingerprint(&fingerprints)?;
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
    /// Locates the inputs of a configuration and locks its folder.
    pub fn open(config: Config, out: &Path) -> Result<Self> {
        Self::open_with(config, out, None)
    }

    /// As [`Run::open`]. For a set of shards, the folder is not locked yet.
    fn open_with(config: Config, out: &Path, set: Option<ShardSet>) -> Result<Self> {
        run_folder::check(out)?;
        let Prepared { config, model, components, model_sha256, corpus_files, inputs, fingerprints, parts, run_id } =
            Prepared::of(config)?;
        let folder = RunFolder::open(out, run_id, &inputs, set)?.with_parts(parts);
        let analysis_tables = analyze::tables_of(&config.analysis)?;
        let rows = RowsPerCall::new(&config, &model.architecture, &components)?;
        Ok(Self { config, folder, model, model_sha256, corpus_files, fingerprints, components, analysis_tables, rows })
    }

    /// Prints what the run will need, before it starts.
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

    /// The text at the end of a run.
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
        self.files(stage).meta().clone()
    }

    /// The files of a stage, as a sink for rows.
    fn files(&self, stage: Stage) -> StageFiles<'_> {
        StageFiles::new(&self.folder, stage, self.fingerprint(stage))
    }

    /// The context of a measurement whose rows go to `files`.
    fn context<'a>(&'a self, graphs: &'a Path, files: &'a StageFiles<'a>) -> MeasureContext<'a> {
        MeasureContext {
            config: &self.config,
            architecture: &self.model.architecture,
            graphs,
            components: &self.components,
            sink: files,
            rows: &self.rows,
        }
    }

    /// Removes the files that any stage wrote under another configuration, even if the stage does not run now.
    fn clear_stale(&self) -> Result<()> {
        for stage in STAGES {
            if self.folder.is_stale(stage, self.fingerprint(stage)) {
                let wanted = (self.fingerprint(stage), self.folder.parts(stage));
                progress::line(
                    stage.name(),
                    &format!("cleared: {}", state(self.folder.root(), stage, Some(wanted)).why()),
                );
                let _report = self.lock_of_report(stage)?;
                self.folder.clear(stage, &self.folders(stage))?;
            }
        }
        Ok(())
    }

    /// Runs every stage up to `last` that is not current, in order.
    pub fn ensure_up_to(&self, last: Stage) -> Result<()> {
        self.remove_corrupt_files(last)?;
        self.run_through(last)
    }

    /// As [`Run::ensure_up_to`], without comparing checksums first.
    pub fn run_through(&self, last: Stage) -> Result<()> {
        let stages: [(Stage, Work); 6] = [
            (Stage::Corpus, Run::corpus),
            (Stage::Export, Run::export),
            (Stage::Trace, Run::trace),
            (Stage::Ablate, Run::ablate),
            (Stage::Analyze, Run::analyze),
            (Stage::Report, Run::report),
        ];
        let wanted = stages.into_iter().filter(|(s, _)| *s <= last);
        wanted.into_iter().try_for_each(|(stage, work)| self.run_stage(stage, work))
    }

    /// Compares the files that a stage is about to read with their checksums. A corrupt file is removed, so that the stage
    /// that wrote it regenerates that file only.
    fn remove_corrupt_files(&self, last: Stage) -> Result<()> {
        let current = |stage: Stage| self.folder.is_current(stage, self.fingerprint(stage));
        let Some(reader) = STAGES.into_iter().filter(|&s| s <= last && !current(s)).max() else { return Ok(()) };
        let spinner = progress::spinner("comparing checksums");
        for stage in STAGES.into_iter().filter(|&s| s < reader && current(s)) {
            for path in self.folder.damaged(stage).into_iter().filter(|path| own_files::is_file(path)) {
                progress::line(
                    stage.name(),
                    &format!("{} has changed since it was written; it is regenerated", path.display()),
                );
                std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        spinner.finish();
        Ok(())
    }

    fn run_stage(&self, stage: Stage, work: Work) -> Result<()> {
        if self.folder.is_current(stage, self.fingerprint(stage)) {
            progress::line(stage.name(), "up to date");
            return Ok(());
        }
        let folders = self.folders(stage);
        let report = self.lock_of_report(stage)?;
        let started = Instant::now();
        self.folder.begin(stage, self.fingerprint(stage), &folders)?;
        report.as_ref().map_or(Ok(()), ReportLock::share)?;
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
        tokenizer.warnings().into_iter().for_each(|warning| self.folder.warn(warning));
        let corpus = corpus::corpus(&self.config.corpus, &self.corpus_files, &tokenizer)?;
        corpus.warnings.iter().for_each(|warning| self.folder.warn(warning.clone()));
        let prompts = &corpus.prompts;
        let text_of = |token| tokenizer.text_of(token);
        prompt_tables::write_tokens(&corpus, text_of, &self.folder.table("tokens"), &self.meta(Stage::Corpus))?;
        prompt_tables::write_targets(prompts, &self.folder.table("targets"), &self.meta(Stage::Corpus))?;
        Ok(match prompts.targets() {
            Targets::Next => format!("{} prompts of {} tokens", prompts.count(), prompts.longest()),
            Targets::Answers(_) => format!("{} prompts of up to {} tokens", prompts.count(), prompts.longest()),
        })
    }

    fn export(&self) -> Result<String> {
        let (folder, ledger) = (self.folder.model(), self.folder.ledger(Stage::Export));
        // A graph is renamed once it is on record.
        let scratch = own_files::scratch_in(&folder).with_context(|| format!("cannot write {}", folder.display()))?;
        export::export(&self.model, self.config.corpus.prompt_len, scratch.path())?;
        for (from, _) in own_files::walk(scratch.path())? {
            let to = folder.join(from.file_name().unwrap_or_default());
            ledger.announce(&to)?;
            std::fs::rename(&from, &to).with_context(|| format!("cannot write {}", to.display()))?;
        }
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
        let (prompts, files, graphs) = (self.prompts()?, self.files(Stage::Trace), self.folder.model());
        measure::trace(&self.context(&graphs, &files), &prompts)?;
        if let Some(warning) = sanity_checks::about_predictions(self)? {
            self.folder.warn(warning);
        }
        Ok(format!("{} tokens", prompts.tokens()))
    }

    fn ablate(&self) -> Result<String> {
        let (prompts, files, graphs) = (self.prompts()?, self.files(Stage::Ablate), self.folder.model());
        measure::ablate::ablate(&self.context(&graphs, &files), &prompts)?;
        Ok(format!("{} components × {} tokens", self.components.len(), prompts.measured_tokens()))
    }

    fn analyze(&self) -> Result<String> {
        // After a failed check, no derived table may remain.
        let discard = || {
            let tables = self.folder.root().join("tables");
            for path in self.folder.files_in(Stage::Analyze, &tables)? {
                std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
            Ok(())
        };
        analyze::analyze(self.folder.root(), &self.config.analysis, &self.meta(Stage::Analyze), discard)
    }

    fn report(&self) -> Result<String> {
        let path = self.folder.root().join("report").join("config.toml");
        self.folder.ledger(Stage::Report).announce(&path)?;
        write_atomically(&path, toml::to_string(&self.config)?.as_bytes())?;
        report::report(self.folder.root())
    }

    /// The prompts, read from the tables of the corpus stage.
    pub fn prompts(&self) -> Result<Prompts> {
        let targets = self.folder.table("targets");
        ensure!(
            self.config.corpus.mode == Mode::Packed || targets.join("targets.parquet").exists(),
            "{} is missing; run again to regenerate it",
            targets.join("targets.parquet").display()
        );
        prompt_tables::read(&self.folder.table("tokens"), &targets)
    }
}

/// The checksum of an input file. A file in the hub's cache must have the checksum that the hub announced.
fn sha256_of_input(path: &Path) -> Result<String> {
    let sha256 = sha256_of_file(path)?;
    hub::check_cached(path, &sha256)?;
    Ok(sha256)
}
