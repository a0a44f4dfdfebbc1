//! Tables that a query reads and the run did not measure.

use datafusion::sql::parser::Statement;
use datafusion::sql::resolve::resolve_table_references;
use selfrepair_core::tables::MEASURED;

use super::session::Tables;
use super::stack::on_large_stack;

impl Tables {
    /// A note for every table that a statement reads, that is empty, and that not every configuration measures.
    pub fn notes_on(&self, statement: &Statement) -> Vec<String> {
        let Ok(Ok((references, _))) = on_large_stack(|| resolve_table_references(statement, true)) else {
            return Vec::new();
        };
        let note = |name: &str| {
            let table = MEASURED.iter().find(|table| table.name == name)?;
            let setting = table.setting?;
            let first = self.collect(&format!("select 1 from {name} limit 1"), &[]).ok()?;
            let is_empty = first.iter().all(|batch| batch.num_rows() == 0);
            is_empty.then(|| format!("{name} is empty: it was not measured; {setting} measures it"))
        };
        references.iter().filter_map(|reference| note(reference.table())).collect()
    }
}
