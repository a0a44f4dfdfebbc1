//! The stages of a run, in the order in which they depend on each other. A stage only reads and writes files. Its
//! fingerprint says whether its output is current. It can be killed at any moment and resumed.

mod drop;
mod foreign;
mod identity;
mod pieces;
mod plan;
mod replace;
mod sanity_checks;
mod sharded_run;
mod work;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use selfrepair_core::config::{Config, Mode};
use selfrepair_core::files::{sha256_of, sha256_of_file};
use selfrepair_core::interrupt;
use selfrepair_core::own_files;
use selfrepair_core::pieces::Piece;
use selfrepair_core::progress;
use selfrepair_core::prompts::Prompts;
use selfrepair_core::shards::ShardSet;
use selfrepair_core::tables::MEASURED;
use selfrepair_engine::export;
use selfrepair_measure::{self as measure, RowsPerCall};
use selfrepair_model::corpus;
use selfrepair_model::{Model, ModelSource, hub};
use selfrepair_query::analyze;
use selfrepair_report as report;
use selfrepair_store::run_folder;
use selfrepair_store::run_folder::{Inputs, RunFolder, STAGES, Stage};
use selfrepair_store::{EMPTY_FILE, Metadata, StageFiles, TableWriter, prompt_tables};

use selfrepair_store::locks::ReportLock;

pub use drop::{What, drop_from};
pub use identity::{contradictions, what_would_be_lost};
pub use plan::{Estimate, dry_run, named};
pub use sharded_run::run_set;

/// A run, with its inputs located and its folder locked.
pub struct Run {
    pub config: Config,
    pub folder: RunFolder,
    pub model: Model,
    model_sha256: String,
    corpus_files: Vec<PathBuf>,
    /// What the folder is bound to.
    identity: Inputs,
    /// What is to be measured.
    pub request: Piece,
    /// What `analyze` writes, a user's own tables included.
    analysis_tables: Vec<String>,
    rows: RowsPerCall,
}

/// A configuration with its inputs located and read as far as every stage needs, before a folder is locked.
pub struct Prepared {
    pub config: Config,
    pub model: Model,
    /// What is to be measured.
    pub request: Piece,
    /// What a folder of this configuration is bound to.
    pub identity: Inputs,
    model_sha256: String,
    corpus_files: Vec<PathBuf>,
    /// Every file that is read.
    inputs: Vec<PathBuf>,
}

/// The work of a stage. Returns a summary for the progress line.
type Work = fn(&Run) -> Result<String>;

/// How a request treats the run that is in its folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// What is missing is added to it.
    Grow,
    /// It is removed first.
    Fresh,
    /// If it contradicts the request, it is removed once the new one is complete.
    Replace,
}

/// Runs `last` and the stages before it; reuses what is there. Returns the summary for the terminal.
pub fn run(config: Config, out: &Path, last: Stage, how: Start) -> Result<String> {
    if how == Start::Replace {
        return replace::replace(config, out, last);
    }
    let fresh = how == Start::Fresh;
    let run = Run::open_with(config, out, None, !fresh)?;
    run.refuse_foreign(last, fresh)?;
    // Of another identity, nothing is finished there.
    if fresh || !identity::contradictions(out, &run.identity).is_empty() {
        run.folder.remove_all()?;
    }
    if fresh {
        replace::remove(&out.join(own_files::REPLACEMENT))?;
    }
    run.announce()?;
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
        let request = Piece::of(&config, a.layers, a.heads)?;
        // One's own queries are read before anything is computed.
        analyze::queries_fingerprint(&config.analysis)?;
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

        let identity = identity::identity(&config, &model_sha256, &corpus_sha256)?;
        let inputs: Vec<PathBuf> = files.into_iter().chain(corpus_files.iter().cloned()).collect();
        Ok(Self { config, model, request, identity, model_sha256, corpus_files, inputs })
    }

    /// What a stage's files would be made from, in a folder with the pieces that it has now.
    pub fn inputs(&self, stage: Stage, root: &Path) -> Result<Inputs> {
        inputs(&self.config, &self.identity, stage, root)
    }
}

fn inputs(config: &Config, identity: &Inputs, stage: Stage, root: &Path) -> Result<Inputs> {
    match stage {
        Stage::Analyze => identity::of_analysis(config, identity, root),
        Stage::Report => identity::of_report(&identity::of_analysis(config, identity, root)?),
        _ => Ok(identity.clone()),
    }
}

impl Run {
    /// Locates the inputs of a configuration and locks its folder.
    ///
    /// # Errors
    /// If the folder has another run, which the configuration contradicts.
    pub fn open(config: Config, out: &Path) -> Result<Self> {
        Self::open_with(config, out, None, true)
    }

    /// As [`Run::open`]. For a set of shards, the folder is not locked yet.
    fn open_with(config: Config, out: &Path, set: Option<ShardSet>, bound: bool) -> Result<Self> {
        run_folder::check(out)?;
        let Prepared { config, model, request, identity, model_sha256, corpus_files, inputs } = Prepared::of(config)?;
        if bound && !replace::is_pending(out, &identity) {
            identity::refuse_contradiction(out, &identity)?;
        }
        let run_id = drop::run_id(&identity.fingerprint)?;
        let folder = RunFolder::open(out, run_id, &inputs, set)?;
        // Processes that share the folder do so once one of them has it alone.
        if set.is_none() {
            replace::put_in_place(&folder, &identity)?;
        }
        if bound {
            // Another process may have finished something since.
            identity::refuse_contradiction(out, &identity)?;
        }
        let analysis_tables = analyze::tables_of(&config.analysis)?;
        let mut config = config;
        let rows = RowsPerCall::fitted(&mut config, &model.architecture, request.components())?;
        Ok(Self { config, folder, model, model_sha256, corpus_files, identity, request, analysis_tables, rows })
    }

    /// Whether a replacement waits for its place in this run's folder.
    fn replacement_is_pending(&self) -> bool {
        replace::is_pending(self.folder.root(), &self.identity)
    }

    /// As [`replace::put_in_place`], in a folder that this process has alone.
    fn put_replacement_in_place(&self) -> Result<()> {
        replace::put_in_place(&self.folder, &self.identity)
    }

    /// Prints what the run will need, before it starts.
    fn announce(&self) -> Result<()> {
        let (resumed, mut pieces) = self.pieces_to_resume()?;
        pieces.extend(resumed.into_iter().map(|open| open.piece));
        let Some(estimate) = Estimate::of(&self.config, &self.model.architecture, &pieces) else {
            let (count, source) = (self.request.components().len(), &self.config.corpus.source);
            progress::line("run", &format!("{count} components on every prompt of {source}"));
            return Ok(());
        };
        let there = selfrepair_store::pieces::coverage(self.folder.root())?.lines();
        if !there.is_empty() {
            progress::line("run", &format!("measured already: {}", there.join("; ")));
        }
        if pieces.is_empty() {
            return Ok(());
        }
        let Estimate { flops, iterate_flops, tokens, disk, memory } = estimate;
        progress::line(
            "run",
            &format!(
                "{} on {tokens} tokens: {:.1} TFLOP of necessary work; about {} of disk in {}, {} of memory",
                plan::named(&pieces),
                (flops + iterate_flops) / 1e12,
                progress::bytes(disk as u64),
                self.folder.root().display(),
                progress::bytes(memory as u64),
            ),
        );
        Ok(())
    }

    /// The text at the end of a run.
    fn summary(&self, last: Stage) -> Result<String> {
        match last {
            Stage::Report => report::summary(self.folder.root()),
            _ => Ok(format!("{} is up to date in {}", last.name(), self.folder.root().display())),
        }
    }

    /// What a stage's files are made from, with the pieces that are there now.
    fn inputs(&self, stage: Stage) -> Result<Inputs> {
        inputs(&self.config, &self.identity, stage, self.folder.root())
    }

    fn meta(&self, stage: Stage) -> Result<Metadata> {
        Ok(self.files(stage)?.meta().clone())
    }

    /// The files of a stage, as a sink for rows.
    fn files(&self, stage: Stage) -> Result<StageFiles<'_>> {
        Ok(StageFiles::new(&self.folder, stage, &self.inputs(stage)?.fingerprint))
    }

    /// Whether a stage has everything that is asked for.
    fn is_current(&self, stage: Stage) -> Result<bool> {
        let whole = self.folder.is_current(stage, &self.inputs(stage)?.fingerprint);
        match stage {
            Stage::Ablate => self.has_all_pieces(),
            Stage::Export => Ok(whole && export::is_of_this_version(&self.folder.model())),
            Stage::Trace => Ok(whole && self.has_activations()),
            _ => Ok(whole),
        }
    }

    /// Whether the activations of `trace.save` are there.
    fn has_activations(&self) -> bool {
        let files = run_folder::manifest(self.folder.root(), Stage::Trace).map(|m| m.files).unwrap_or_default();
        let count = |folder: &str| files.iter().filter(|(name, _)| name.starts_with(folder)).count();
        let folder = |what| format!("activations/{}/", measure::activation_name(what));
        // As many shards as the clean pass has.
        let shards = count("tables/clean/");
        self.config.trace.save.iter().all(|&what| count(&folder(what)) == shards)
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
        let mut current = Vec::new();
        for stage in STAGES.into_iter().filter(|&stage| stage <= last) {
            if self.is_current(stage)? {
                current.push(stage);
            }
        }
        let reader = STAGES.into_iter().filter(|stage| *stage <= last && !current.contains(stage)).max();
        let Some(reader) = reader else { return Ok(()) };
        let spinner = progress::spinner("comparing checksums");
        // Finished pieces are there, whether or not more are wanted.
        let checked = |stage: &Stage| *stage < reader && current.contains(stage) || *stage == Stage::Ablate;
        for stage in STAGES.into_iter().filter(checked) {
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
        if self.is_current(stage)? {
            if stage == Stage::Ablate {
                self.folder.tidy_pieces(&self.identity)?;
            }
            progress::line(stage.name(), "up to date");
            return Ok(());
        }
        let folders = self.folders(stage);
        let report = self.lock_of_report(stage)?;
        let started = Instant::now();
        let inputs = self.inputs(stage)?;
        match stage {
            Stage::Ablate => self.folder.begin_pieces(&inputs)?,
            _ => self.folder.begin(stage, &inputs, &folders)?,
        }
        report.as_ref().map_or(Ok(()), ReportLock::share)?;
        interrupt::check()?;
        let done = work(self)?;
        if stage != Stage::Ablate {
            self.write_empty_tables(stage)?;
            self.folder.finish(stage, &inputs, &folders)?;
        }
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
            Stage::Ablate => self.folders_of_pieces(),
            Stage::Analyze => self.analysis_tables.iter().map(|name| f.table(name)).collect(),
            Stage::Report => vec![f.root().join("report"), f.root().join("figures")],
        }
    }

    /// Every measured table of a finished stage is there with its columns, also one that the configuration does not ask for.
    fn write_empty_tables(&self, stage: Stage) -> Result<()> {
        let folders = self.folders(stage);
        for table in MEASURED {
            let folder = self.folder.table(table.name);
            if folders.contains(&folder) && self.folder.files_in(stage, &folder)?.is_empty() {
                TableWriter::create(table, &folder.join(EMPTY_FILE), &self.meta(stage)?)?.finish()?;
            }
        }
        Ok(())
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
