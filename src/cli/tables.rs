//! `pipeline tables`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use selfrepair_query::catalog;
use selfrepair_query::sql::Tables;

/// Show what tables there are, and what their columns mean
///
/// With NAME: what one row stands for, how the rows are sorted, every column with its type, unit and meaning, and a
/// query to begin with. The built-in tables and views are described without a run, too; of a run, its own tables and
/// their sizes are shown.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A table or a view
    name: Option<String>,
    /// Folder of the run, or s3://bucket/prefix [default: out, if there is one]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The documentation of all built-in tables and views as Markdown
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
        // A table that the run does not have (yet) is described as it would be.
        (Some(name), Some(tables)) if tables.names().contains(&name) => catalog::table_of_session(&tables, &name)?,
        (Some(name), _) => catalog::find(&name)?.text(),
    };
    super::say(&text)
}
