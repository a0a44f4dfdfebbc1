//! `pipeline prompts`.

use std::io::Write;

use anyhow::{Context, Result};
use clap::ValueEnum;
use selfrepair_core::plain::Stdout;
use selfrepair_model::corpus::ioi;

/// Print a prompt set as JSON lines, for measuring a narrow task with corpus.mode = "prompts"
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The task
    #[arg(value_enum)]
    task: Task,
    /// Number of prompts, at most 1000000
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    count: u32,
    /// Seed that draws names, places and things
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Task {
    /// Indirect object identification: "When Mary and John went to the park, John gave a ball to" → " Mary", not " John"
    Ioi,
}

const EXAMPLES: &str = "Examples:
  pipeline prompts ioi > ioi.jsonl
  pipeline run all --config pipeline/ioi.toml --out out/ioi";

const PLACE: &str = "cannot write to standard output";

pub fn run(args: Args) -> Result<()> {
    let Task::Ioi = args.task;
    let mut stdout = std::io::BufWriter::new(Stdout);
    for prompt in ioi::prompts(args.count as usize, args.seed) {
        writeln!(stdout, "{}", serde_json::to_string(&prompt)?).context(PLACE)?;
    }
    stdout.flush().context(PLACE)
}
