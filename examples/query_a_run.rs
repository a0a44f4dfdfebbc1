//! Queries the tables of a run in SQL.
//!
//! `cargo run --release --example query_a_run -- [OUT]`

use std::path::Path;

use arrow::util::pretty::pretty_format_batches;
use selfrepair::query::sql::Tables;

const HEADS_WITH_MOST_REPAIR: &str = "
    select name, avg(direct_effect) as direct_effect, avg(logit_change) as logit_change,
           avg(self_repair) as self_repair
    from ablations
    group by name
    order by self_repair desc
    limit 10";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = std::env::args().nth(1).unwrap_or_else(|| "out".to_string());
    let tables = Tables::open(Path::new(&out))?;
    let rows = tables.collect(HEADS_WITH_MOST_REPAIR, &[])?;
    println!("{}", pretty_format_batches(&rows)?);
    Ok(())
}
