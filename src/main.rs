//! The command line.

use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use pipeline::analyze::{Format, Tables, print};
use pipeline::config::{Config, ModelConfig};
use pipeline::describe::describe;
use pipeline::model::Model;
use pipeline::run_folder::{Stage, incomplete_stages};
use pipeline::{provision, report, stages};

/// Measures self-repair in language models: when one attention head is ablated, later parts of the model compensate.
///
/// `pipeline run all` measures a small pretrained model on real text and ends with tables, a summary and a report.
#[derive(Parser)]
#[command(version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring a stage up to date, running what it needs before it
    ///
    /// Stages: corpus (tokenize) → export (ONNX graphs) → trace (clean pass) → ablate → analyze (SQL) → report.
    /// What is up to date already is not run again, and a run that was killed resumes.
    #[command(after_help = RUN_EXAMPLES)]
    Run {
        /// The last stage to run
        #[arg(value_enum)]
        stage: Last,
        /// Configuration file (TOML) [default: the built-in pipeline/quick.toml]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Folder of the run
        #[arg(long, value_name = "DIR", default_value = "out")]
        out: PathBuf,
        /// Override a key of the configuration; the value is TOML, a bare word is a string
        #[arg(long = "set", value_name = "KEY=VALUE")]
        overrides: Vec<String>,
        /// Where to compute: cpu, cuda or cuda:n (the same as --set runtime.device=…)
        #[arg(long, value_name = "DEVICE")]
        device: Option<String>,
        /// Do every stage anew
        #[arg(long)]
        fresh: bool,
    },
    /// Ask a run's tables a question in SQL
    ///
    /// Every table under OUT/tables is there under its folder's name: tokens, clean, direct_effects, ablations,
    /// head_summary, layer_summary, … Without QUERY and FILE, the query is read from standard input.
    #[command(after_help = SQL_EXAMPLES)]
    Sql {
        /// The query
        #[arg(conflicts_with = "file", allow_hyphen_values = true)]
        query: Option<String>,
        /// Read the query from a file
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Folder of the run
        #[arg(long, value_name = "DIR", default_value = "out")]
        out: PathBuf,
        /// How to print the rows
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
    },
    /// Write a run's report anew, or compare several runs in one page with figures
    Report {
        /// Folder of a run; give it several times to compare
        #[arg(long, value_name = "DIR", required = true)]
        out: Vec<PathBuf>,
        /// Where the comparison is written
        #[arg(long, value_name = "DIR", default_value = "comparison")]
        to: PathBuf,
    },
    /// Show what a run of a model would be: its architecture, memory, floating-point work and time on this machine
    ///
    /// Only the configuration of the model is read (and, of an hf: model, fetched), not its weights.
    #[command(after_help = MODEL_EXAMPLES)]
    Model {
        /// package:smollm2, hf:owner/name, a directory, or a .gguf file
        source: String,
        /// Branch, tag or commit of an hf: source
        #[arg(long, default_value = "")]
        revision: String,
        /// Tokens of the run to estimate
        #[arg(long, default_value_t = 100_000)]
        tokens: usize,
    },
    /// Show what this machine has: Python, ONNX Runtime and its providers, cached packages
    Doctor,
}

const MODEL_EXAMPLES: &str = "Examples:
  pipeline model package:smollm2
  pipeline model hf:EleutherAI/pythia-160m --tokens 1000000
  pipeline model ./my-llama";

const RUN_EXAMPLES: &str = "Examples:
  pipeline run all
  pipeline run all --set ablation.heads=all --set 'ablation.kinds=[\"resample\", \"mean\", \"zero\"]'
  pipeline run all --set model.source=./my-llama --set ablation.heads=all --set corpus.source=./texts.jsonl --out out/mine
  pipeline run trace --config my.toml --fresh";

const SQL_EXAMPLES: &str = "Examples:
  pipeline sql \"select layer, avg(self_repair) from ablations group by layer order by layer\"
  pipeline sql --format csv \"select * from head_summary where subset = 'top'\" > heads.csv
  pipeline sql \"show tables\"";

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

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if is_broken_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Run { stage, config, out, mut overrides, device, fresh } => {
            overrides.extend(device.map(|d| format!("runtime.device={d}")));
            let config = Config::load(config.as_deref(), &overrides)?;
            rayon::ThreadPoolBuilder::new().num_threads(config.runtime.thread_count()).build_global()?;
            say(&stages::run(config, &out, stage.stage(), fresh)?)
        }
        Command::Sql { query, file, out, format } => {
            let query = read_query(query, file)?;
            let unfinished = incomplete_stages(&out);
            if !unfinished.is_empty() {
                eprintln!("warning: the run is not finished ({}); its tables may lack rows", unfinished.join(", "));
            }
            let rows = Tables::open(&out)?.collect(&query, &[])?;
            let mut stdout = std::io::stdout().lock();
            print(&rows, format, &mut stdout)?;
            Ok(stdout.flush()?)
        }
        Command::Report { out, to } => say(&report::compare(&out, &to)?),
        Command::Model { source, revision, tokens } => {
            let model = Model::open_configuration(&ModelConfig { source, revision })?;
            say(&describe(&model, tokens)?)
        }
        Command::Doctor => say(&provision::doctor()?),
    }
}

/// Prints a result. Unlike `println!`, a reader that has gone (`| head`) is an error and no panic.
fn say(text: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

fn read_query(query: Option<String>, file: Option<PathBuf>) -> Result<String> {
    if let Some(query) = query {
        return Ok(query);
    }
    if let Some(path) = file {
        return std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()));
    }
    let mut stdin = std::io::stdin();
    ensure!(!stdin.is_terminal(), "no query; write it after `pipeline sql`, or name a file with -f");
    let mut text = String::new();
    stdin.read_to_string(&mut text)?;
    Ok(text)
}

/// `pipeline sql … | head` is no failure.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|e| match e.downcast_ref::<std::io::Error>() {
        Some(e) => e.kind() == std::io::ErrorKind::BrokenPipe,
        // arrow's CSV and JSON writers keep the words of the error only.
        None => e.to_string().contains("Broken pipe"),
    })
}
