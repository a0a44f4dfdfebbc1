//! `pipeline sql`.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, ensure};
use arrow::array::RecordBatch;
use selfrepair_core::address;
use selfrepair_core::plain::visible;
use selfrepair_core::untrusted::{MARK, not_utf8, read_text};
use selfrepair_query::sql::{
    DataFrame, Digits, Format, ROWS_ON_A_TERMINAL, Rights, Tables, Target, has_parameters, prompt,
};

use super::{signals, terminal};
use crate::allocator;

/// Query the tables of a run in SQL
///
/// A table has the name of its folder under OUT/tables: tokens, clean, direct_effects, ablations, head_summary,
/// layer_summary, … There are views over them too (`pipeline tables` lists all). Without QUERY and FILE, the query is read
/// from a pipe, or from a prompt on a terminal. Separate statements with `;`. `$top_fraction` is the run's
/// analysis.top_fraction.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The query
    #[arg(conflicts_with = "file", allow_hyphen_values = true)]
    query: Option<String>,
    /// Read the query from a file
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Folder of the run, or s3://bucket/prefix; repeat it to query several runs, with a leading column `run` in every table
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: Vec<PathBuf>,
    /// Output format [default: from the name of --output, else table]
    #[arg(long, value_enum)]
    format: Option<FormatName>,
    /// Write the rows to a file
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Significant digits of numbers in a table, 1 to 17, or `all`; the other formats have all
    #[arg(long, value_name = "N", default_value_t)]
    digits: Digits,
    /// Let statements read and write files: create external table, copy, create table
    ///
    /// Without it, a statement can only read the run's tables: select, explain, describe, show, and `create view` (which
    /// names a query for this session). A run's own tables are never written to.
    #[arg(long)]
    allow_files: bool,
    /// Bytes of memory that queries may take; larger queries spill to temporary files, or fail
    /// [default: runtime.memory of the run, or four fifths of the free memory]
    #[arg(long, value_name = "BYTES", default_value_t = 0, hide_default_value = true)]
    memory: u64,
}

const EXAMPLES: &str = "Examples:
  pipeline sql
  pipeline sql \"select layer, avg(self_repair) from ablations group by layer order by layer\"
  pipeline sql --format csv \"select * from head_summary where subset = 'top'\" > heads.csv
  pipeline sql --output heads.parquet \"select * from head_summary\"
  pipeline sql --out out/gpt2 --out out/pythia \"select run, avg(self_repair) from head_summary group by run\"
  pipeline sql --out s3://my-bucket/runs/pythia \"show tables\"
  pipeline sql -f sql/head_summary.sql
  pipeline sql \"show tables\"";

/// The formats as the command line names them.
#[derive(Clone, Copy, clap::ValueEnum)]
enum FormatName {
    /// Aligned columns for reading
    Table,
    Csv,
    /// One JSON object per line
    Json,
    Parquet,
    /// Arrow IPC: the file format in a file, the stream format in a pipe
    Arrow,
}

impl From<FormatName> for Format {
    fn from(name: FormatName) -> Self {
        match name {
            FormatName::Table => Self::Table,
            FormatName::Csv => Self::Csv,
            FormatName::Json => Self::Json,
            FormatName::Parquet => Self::Parquet,
            FormatName::Arrow => Self::Arrow,
        }
    }
}

pub fn run(args: Args) -> Result<()> {
    let from_terminal = args.query.is_none() && args.file.is_none() && std::io::stdin().is_terminal();
    let of_output = || args.output.as_deref().map_or(Ok(Format::Table), Format::of_file);
    let format = args.format.map_or_else(of_output, |format| Ok(Format::from(format)))?;
    if let Some(output) = &args.output {
        address::refuse(output, "--output", "rows are written to a file")?;
    }
    let target = Target::new(format, args.output, args.digits)?;
    let rights = if args.allow_files { Rights::Files } else { Rights::Tables };
    let tables = Tables::of_runs_with(&args.out, rights, args.memory)?;
    allocator::refuse_more_than(2 * tables.memory());
    for (run, stages) in tables.unfinished() {
        let stages = stages.join(", ");
        terminal::say(&format!(
            "warning: the run {} is not finished ({stages}); its tables may lack rows",
            visible(run)
        ));
    }
    if from_terminal {
        signals::end_with_the_terminal()?;
        return prompt(&tables, args.digits);
    }
    signals::end_at_once()?;
    let query = read_query(args.query, args.file)?;
    answer(&tables, &query, &target)
}

fn read_query(query: Option<String>, file: Option<PathBuf>) -> Result<String> {
    if let Some(query) = query {
        return Ok(query);
    }
    match file {
        Some(path) => read_text(&path, LONGEST_QUERY),
        None => {
            let mut bytes = Vec::new();
            std::io::stdin().take(LONGEST_QUERY + 1).read_to_end(&mut bytes)?;
            let place = "cannot read the query from the pipe";
            ensure!(bytes.len() as u64 <= LONGEST_QUERY, "{place}: it has more than {LONGEST_QUERY} bytes");
            text_of(bytes).context(place)
        }
    }
}

/// Bytes of the longest query.
const LONGEST_QUERY: u64 = 16 << 20;

fn text_of(mut bytes: Vec<u8>) -> Result<String> {
    if bytes.starts_with(MARK) {
        bytes.drain(..MARK.len());
    }
    String::from_utf8(bytes).map_err(|e| anyhow!(not_utf8(e.as_bytes())))
}

fn answer(tables: &Tables, sql: &str, target: &Target) -> Result<()> {
    let statements = tables.statements(sql)?;
    ensure!(!statements.is_empty(), "there is no query; write it after `pipeline sql`, or name a file with -f");
    let parameters = if has_parameters(sql) { tables.parameters()? } else { Vec::new() };
    let mut results = 0;
    for statement in &statements {
        let frame = tables.frame(statement, sql, &parameters)?;
        // `create view …` has no rows.
        if frame.schema().fields().is_empty() {
            continue;
        }
        results += 1;
        ensure!(
            results == 1 || !target.holds_one_result(),
            "several statements return rows, and the output holds one result; keep one `select`, or write CSV or JSON to a pipe"
        );
        write(tables, frame, sql, target)?;
        tables.notes_on(statement).iter().for_each(|note| terminal::say(note));
    }
    Ok(())
}

/// Writes the rows as they come. A terminal gets only the first few hundred.
fn write(tables: &Tables, frame: DataFrame, sql: &str, target: &Target) -> Result<()> {
    let schema = std::sync::Arc::new(frame.schema().as_arrow().clone());
    let mut stream = tables.stream(frame, sql)?;
    let (mut left, mut more) = (if target.is_a_terminal() { ROWS_ON_A_TERMINAL } else { usize::MAX }, false);
    let next = || -> Result<Option<RecordBatch>> {
        let Some(batch) = tables.next(&mut stream, sql)? else { return Ok(None) };
        if batch.num_rows() > left {
            more = true;
        }
        let batch = batch.slice(0, left.min(batch.num_rows()));
        left -= batch.num_rows();
        Ok((batch.num_rows() > 0 || !more).then_some(batch))
    };
    target.write(&schema, next)?;
    if more {
        terminal::say(&format!(
            "the first {ROWS_ON_A_TERMINAL} rows; --output FILE (.parquet, .csv, …) or a pipe gets all rows"
        ));
    }
    Ok(())
}
