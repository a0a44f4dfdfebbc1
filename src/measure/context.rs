//! The inputs of a measurement.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use anyhow::Result;
use selfrepair_core::components::Ablatable;
use selfrepair_core::config::Config;
use selfrepair_core::pieces::Piece;
use selfrepair_core::progress;
use selfrepair_core::sink::RowSink;
use selfrepair_engine::batch;
use selfrepair_model::Architecture;

/// The inputs of a measurement, and the sink for its rows.
pub struct MeasureContext<'a> {
    pub config: &'a Config,
    pub architecture: &'a Architecture,
    /// Folder of the ONNX graphs that `selfrepair_engine::export` wrote.
    pub graphs: &'a Path,
    /// What is ablated, and which tables are filled.
    pub piece: &'a Piece,
    pub sink: &'a dyn RowSink,
    pub rows: &'a RowsPerCall,
}

/// About how many rows (runs × positions) one call of a graph has; fewer once memory turns out to be short.
pub struct RowsPerCall {
    count: AtomicUsize,
    /// How many there is memory for.
    fit: usize,
}

impl RowsPerCall {
    /// The number that the configuration sets, or fewer if memory does not allow it. The configuration says from then on
    /// how many, and whether all layers are in memory at once.
    ///
    /// # Errors
    /// If not even one layer and one prompt fit into memory.
    pub fn fitted(config: &mut Config, architecture: &Architecture, components: &[Ablatable]) -> Result<Self> {
        let (runtime, prompt_len) = (&mut config.runtime, config.corpus.prompt_len);
        runtime.all_layers = Some(batch::all_layers_fit(runtime, architecture, prompt_len, components));
        let wanted = batch::rows_wanted(runtime);
        let fit = batch::rows_that_fit(runtime, architecture, prompt_len, components)?;
        runtime.batch = wanted.min(fit);
        if fit < wanted {
            progress::line(
                "memory",
                &format!("batches of {fit} rows instead of {wanted}: larger ones do not fit in memory"),
            );
        }
        Ok(Self { count: AtomicUsize::new(runtime.batch), fit })
    }

    /// As many as an earlier call of the program had: the number can change the rounding.
    pub fn of(rows: usize) -> Self {
        Self { count: AtomicUsize::new(rows), fit: rows }
    }

    pub fn count(&self) -> usize {
        self.count.load(Relaxed)
    }

    /// How many there is memory for.
    pub fn fit(&self) -> usize {
        self.fit
    }
}

impl MeasureContext<'_> {
    /// About how many rows (runs × positions) one call of a graph has.
    pub fn rows_in_call(&self) -> usize {
        self.rows.count()
    }

    /// Prompts of a shard, grouped by length, in batches that fill a call and keep every engine busy.
    pub(crate) fn batches_of(
        &self,
        by_length: Vec<Vec<usize>>,
        length: impl Fn(usize) -> usize,
        engines: usize,
    ) -> Vec<Vec<usize>> {
        let batches = by_length.iter().flat_map(|equal| {
            let most = (self.rows_in_call() / length(equal[0])).min(equal.len().div_ceil(engines));
            balanced(equal, most).map(<[usize]>::to_vec)
        });
        batches.collect()
    }

    /// After a call of so many rows found no memory: smaller calls from now on. False if a call is already as small as
    /// one run of `length` positions.
    pub(crate) fn shrink(&self, rows: usize, length: usize) -> bool {
        if rows <= length {
            return false;
        }
        let half = (rows / 2).max(length);
        // Another thread may have done so already.
        if self.rows.count.fetch_min(half, Relaxed) > half {
            progress::line("memory", &format!("no memory for batches of {rows} rows; continuing with {half}"));
        }
        true
    }
}

/// `items` in as few groups of at most `most` as possible, of sizes that differ by at most one.
pub(crate) fn balanced<T>(items: &[T], most: usize) -> impl Iterator<Item = &[T]> {
    let groups = items.len().div_ceil(most.max(1)).max(1);
    (0..groups).map(move |g| &items[g * items.len() / groups..(g + 1) * items.len() / groups])
}

#[cfg(test)]
mod tests {
    use super::balanced;

    #[test]
    fn groups_are_even_and_complete() {
        let items: Vec<usize> = (0..10).collect();
        let sizes: Vec<usize> = balanced(&items, 9).map(<[usize]>::len).collect();
        assert_eq!(sizes, [5, 5]);
        assert_eq!(balanced(&items, 3).flatten().count(), 10);
        assert!(balanced(&items, 3).all(|g| g.len() <= 3));
        assert_eq!(balanced(&items[..0], 3).flatten().count(), 0);
    }
}
