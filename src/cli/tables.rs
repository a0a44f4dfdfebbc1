//! `pipeline tables`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use selfrepair_query::catalog;
use selfrepair_query::sql::Tables;

/// List the tables and views, or describe one
///
/// With NAME: the grain, the sort order, every column with its type, unit and description, and an example query. Without a
/// run, the built-in tables and views are described. With a run, the user's own tables and all sizes are shown too.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A table or a view
    name: Option<String>,
    /// Folder of the run, or s3://bucket/prefix [default: out, if there is one]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print the documentation of all built-in tables and views as Markdown
    #[arg(long, conflicts_with_all = ["name", "out"])]
    markdown: bool,
}

const EXAMPLES: &str = "Examples:
  pipeline tables
  pipeline tables head_summary
  pipeline tables --out out/gpt2
  pipeline tables --markdown > docs/tables.md";

pub fn run(args: Args) -> Result<()> {
    if args.markdown {
        return super::say(&catalog::markdown()?);
    }
    let tables = match args.out {
        Some(out) => Some(Tables::open(&out)?),
        None => Tables::open(Path::new("out")).ok(),
    };
    let text = match (args.name, tables) {
        (None, Some(tables)) => catalog::list_of_run(&tables)?,
        (None, None) => catalog::list()?,
        // A built-in table that the run does not have yet.
        (Some(name), Some(tables)) if tables.names().contains(&name) => catalog::table_of_session(&tables, &name)?,
        (Some(name), _) => catalog::find(&name)?.text(),
    };
    super::say(&text)
}
