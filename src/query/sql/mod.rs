//! SQL over the tables of finished runs: their location, a session that opens tables on demand, error messages, output
//! formats, and the interactive prompt.

mod allowed;
mod bucket;
mod budget;
mod cells;
mod csv;
mod errors;
mod from_first;
mod functions;
mod location;
mod output;
mod parameters;
mod parse;
mod planner;
mod prompt;
mod requests;
mod run;
mod session;
mod size;
mod stack;
mod table;
mod terminal;
mod unmeasured;

pub use allowed::Rights;
pub(crate) use allowed::check_own;
pub use datafusion::dataframe::DataFrame;
pub(crate) use errors::no_such_table;
pub(crate) use output::head;
pub use output::{Format, Target};
pub use parameters::{Value, with_literals};
pub use parse::has_parameters;
pub use planner::Planner;
pub use prompt::prompt;
pub use session::{ROWS_ON_A_TERMINAL, Tables};
pub use table::Digits;
pub(crate) use table::table_text;
