//! `pipeline run`.

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use selfrepair_core::address;
use selfrepair_core::config::Config;
use selfrepair_core::shards::ShardSet;
use selfrepair_core::threads;
use selfrepair_store::run_folder::Stage;

use crate::stages::{self, Start};

/// Run a stage and the stages before it; reuse cached work
///
/// Stages: corpus (tokenize) → export (ONNX graphs) → trace (clean pass) → ablate → analyze (SQL) → report. A stage that
/// is up to date is not run again. A run that was killed resumes.
///
/// A run folder only grows: a request for other kinds, components, holds, neurons or activations adds what is missing. A
/// request for another model, corpus, seed or precision contradicts what is there and is refused; use another --out, or
/// --replace.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The last stage to run
    #[arg(value_enum)]
    stage: Last,
    #[command(flatten)]
    settings: Settings,
    /// Folder of the run
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
    /// Remove everything that was measured in the folder, and start over; asks first
    #[arg(long)]
    fresh: bool,
    /// Replace a run in the folder that contradicts this request, once the new one is complete
    #[arg(long, conflicts_with_all = ["fresh", "shard"])]
    replace: bool,
    /// Do not ask before results are removed
    #[arg(long)]
    yes: bool,
    /// Compute only the i-th of n sets of shards of `ablate`, for several processes on one run
    ///
    /// All processes get the same configuration and folder. The first process runs everything before `ablate`. Each
    /// process then computes its shards. The last one to finish runs `analyze` and `report`. The tables are byte for byte
    /// those of a single process.
    #[arg(long, value_name = "I/N", conflicts_with_all = ["fresh", "dry_run"])]
    shard: Option<ShardSet>,
    /// Show which stages would run, why, and what they would cost; run nothing
    ///
    /// The folder is not changed. The model and the corpus are read, and downloaded if they are missing.
    #[arg(long)]
    dry_run: bool,
}

/// The configuration options of `run` and `status`.
#[derive(clap::Args)]
pub struct Settings {
    /// Configuration file (TOML) [default: the built-in pipeline/quick.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Override a key of the configuration; the value is TOML, and a bare word is a string
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Device: cpu, cuda or cuda:n (the same as --set runtime.device=…)
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Precision of projections: fp32, bf16, fp16, or tf32 on a GPU (the same as --set runtime.precision=…)
    #[arg(long, value_name = "PRECISION")]
    pub precision: Option<String>,
}

const EXAMPLES: &str = "Examples:
  pipeline run all
  pipeline run all --dry-run --set corpus.tokens=100000
  pipeline run all --set ablation.heads=all --set 'ablation.kinds=[\"resample\", \"mean\", \"zero\"]'
  pipeline run all --set model.source=./my-llama --set ablation.heads=all --set corpus.source=./texts.jsonl --out out/mine
  pipeline run all --set 'ablation.kinds=[\"resample\", \"zero\"]'        adds what is missing
  pipeline run all --device cuda:0 --shard 1/2 & pipeline run all --device cuda:1 --shard 2/2";

#[derive(Clone, Copy, ValueEnum)]
enum Last {
    All,
    Corpus,
    Export,
    Trace,
    Ablate,
    Analyze,
    Report,
}

impl Last {
    fn stage(self) -> Stage {
        match self {
            Last::Corpus => Stage::Corpus,
            Last::Export => Stage::Export,
            Last::Trace => Stage::Trace,
            Last::Ablate => Stage::Ablate,
            Last::Analyze => Stage::Analyze,
            Last::All | Last::Report => Stage::Report,
        }
    }
}

impl Settings {
    /// Whether any option was given.
    pub fn are_given(&self) -> bool {
        self.config.is_some() || !self.overrides.is_empty() || self.device.is_some() || self.precision.is_some()
    }

    pub fn load(&self) -> Result<Config> {
        let mut overrides = self.overrides.clone();
        overrides.extend(self.device.iter().map(|d| format!("runtime.device={d}")));
        overrides.extend(self.precision.iter().map(|p| format!("runtime.precision={p}")));
        Config::load(self.config.as_deref(), &overrides)
    }
}

pub fn run(args: Args) -> Result<()> {
    address::refuse(&args.out, "--out", "a run is written to a folder")?;
    let config = args.settings.load()?;
    let how = match (args.fresh, args.replace) {
        (true, _) => Start::Fresh,
        (_, true) => Start::Replace,
        _ => Start::Grow,
    };
    let last = args.stage.stage();
    if args.dry_run {
        return super::say(&stages::dry_run(config, &args.out, last, how)?);
    }
    if let Some(lost) = (how == Start::Fresh).then(|| stages::what_would_be_lost(&args.out)).transpose()?.flatten() {
        super::confirm(&format!("--fresh removes what is in {}: {lost}", args.out.display()), args.yes)?;
    }
    // The engines, and rayon's.
    threads::check_available(2 * config.runtime.thread_count() + super::MORE_THREADS, threads::STACK)?;
    rayon::ThreadPoolBuilder::new().num_threads(config.runtime.thread_count()).build_global()?;
    super::signals::watch(super::RESUME.to_string())?;
    super::say(&match args.shard {
        Some(set) => stages::run_set(config, &args.out, last, set)?,
        None => stages::run(config, &args.out, last, how)?,
    })
}
