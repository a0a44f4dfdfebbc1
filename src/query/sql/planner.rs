//! The schema of a query's result, without data.

use std::sync::Arc;

use anyhow::{Result, anyhow};
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::datasource::empty::EmptyTable;
use datafusion::prelude::SessionContext;
use tokio::runtime::Runtime;

use super::stack::on_large_stack;

/// A session over tables that have columns and no rows.
pub struct Planner {
    context: SessionContext,
    runtime: Runtime,
}

impl Planner {
    pub fn new() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        Ok(Self { context: SessionContext::new(), runtime })
    }

    pub fn add(&self, name: &str, schema: SchemaRef) -> Result<()> {
        self.context.register_table(name, Arc::new(EmptyTable::new(schema)))?;
        Ok(())
    }

    /// The columns of a query's result.
    pub fn schema(&self, sql: &str) -> Result<Schema> {
        let plan = on_large_stack(|| self.runtime.block_on(self.context.state().create_logical_plan(sql)))?;
        Ok(plan.map_err(|e| anyhow!("{}", e.strip_backtrace()))?.schema().as_arrow().clone())
    }
}
