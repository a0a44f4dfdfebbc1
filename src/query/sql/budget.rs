//! The memory that queries may take, and the folder that they spill to.

use std::sync::Arc;

use anyhow::{Error, Result, anyhow};
use arrow::array::RecordBatch;
use datafusion::dataframe::DataFrame;
use datafusion::error::DataFusionError;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{FairSpillPool, MemoryConsumer, MemoryReservation};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::prelude::SessionConfig;
use tempfile::TempDir;

use selfrepair_core::{interrupt, memory, progress};

/// Bytes that queries have at least: with less, hardly any is answered.
const LEAST: u64 = 64 << 20;

/// Where nothing says how much memory there is.
const UNKNOWN: u64 = 4 << 30;

/// Bytes of temporary files.
const ON_DISK: u64 = 64 << 30;

/// What queries may take, all of a session together.
#[derive(Debug, Clone)]
pub struct Budget {
    /// Bytes that are counted. As much again is left for what the engine does not count: rows on their way.
    pub counted: u64,
    /// Where the limit comes from.
    source: String,
}

impl Budget {
    /// Half of what was asked for with a setting, or of four fifths of what the machine and the control group have.
    pub fn of(asked: &[(u64, &str)]) -> Self {
        let asked = asked.iter().filter(|(bytes, _)| *bytes > 0).min();
        let (bytes, source) = match asked {
            Some(&(bytes, name)) => (bytes, format!("{name} = {bytes}")),
            None => {
                let free = memory::available().unwrap_or(UNKNOWN);
                (free / 5 * 4, format!("the {} that are free on this machine", progress::bytes(free)))
            }
        };
        Self { counted: (bytes / 2).max(LEAST), source }
    }

    /// What a session runs in, and the folder for its temporary files, which is removed with it.
    pub fn environment(&self) -> Result<(Arc<RuntimeEnv>, Option<TempDir>)> {
        // Without such a folder, what does not fit is an error.
        let folder = interrupt::scratch_folder("self-repair-sql-").ok();
        let mode = match &folder {
            Some(folder) => DiskManagerMode::Directories(vec![folder.path().to_path_buf()]),
            None => DiskManagerMode::Disabled,
        };
        let pool = FairSpillPool::new(usize::try_from(self.counted).unwrap_or(usize::MAX));
        let disk = DiskManagerBuilder::default().with_mode(mode).with_max_temp_directory_size(ON_DISK);
        let environment = RuntimeEnvBuilder::new().with_memory_pool(Arc::new(pool)).with_disk_manager_builder(disk);
        Ok((environment.build_arc()?, folder))
    }

    /// Room that a sort keeps for merging what it wrote, fitted to what there is.
    pub fn fit(&self, config: &mut SessionConfig) {
        let execution = &mut config.options_mut().execution;
        let share = usize::try_from(self.counted / 64).unwrap_or(usize::MAX);
        execution.sort_spill_reservation_bytes = execution.sort_spill_reservation_bytes.min(share);
    }

    /// That a query needs more.
    pub fn exceeded(&self, why: &str) -> Error {
        let why = why.lines().next().unwrap_or_default();
        anyhow!(
            "the query needs more memory or temporary disk than queries may have: {} of memory ({}) and {} of disk in {}. \
             Ask for fewer rows or columns, or allow more with --memory or runtime.memory. ({why})",
            progress::bytes(self.counted),
            self.source,
            progress::bytes(ON_DISK),
            std::env::temp_dir().display()
        )
    }
}

/// Rows that are kept, counted as what they are.
pub struct Kept {
    reservation: MemoryReservation,
    pub rows: Vec<RecordBatch>,
}

impl Kept {
    pub fn of(frame: &DataFrame) -> Self {
        let pool = Arc::clone(frame.task_ctx().memory_pool());
        Self { reservation: MemoryConsumer::new("the rows of the result").register(&pool), rows: Vec::new() }
    }

    /// # Errors
    /// If there is no room for them.
    pub fn add(&mut self, batch: RecordBatch) -> Result<(), DataFusionError> {
        let bytes = batch.columns().iter().map(|c| c.to_data().get_slice_memory_size()).sum::<Result<usize, _>>()?;
        self.reservation.try_grow(bytes)?;
        self.rows.push(batch);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_limit_that_is_set_counts_and_else_a_share_of_what_is_free() {
        let budget = Budget::of(&[(0, "--memory"), (4_000_000_000, "runtime.memory")]);
        assert_eq!(budget.counted, 2_000_000_000);
        assert!(budget.exceeded("x").to_string().contains("runtime.memory = 4000000000"));
        assert_eq!(Budget::of(&[(1, "--memory"), (4_000_000_000, "runtime.memory")]).counted, LEAST);
        let free = Budget::of(&[(0, "--memory")]);
        assert!(free.counted >= LEAST && free.exceeded("x").to_string().contains("free on this machine"));
    }

    #[test]
    fn the_folder_for_temporary_files_is_removed() {
        let (environment, folder) = Budget::of(&[]).environment().unwrap();
        let path = folder.as_ref().unwrap().path().to_path_buf();
        assert!(path.is_dir());
        drop((environment, folder));
        assert!(!path.exists());
    }
}
