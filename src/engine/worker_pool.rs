//! One engine per thread, each with its own batch. Threads that share a matrix product wait for each other at the end
//! of every operator; threads with separate batches do not.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use anyhow::{Result, anyhow};

use super::blocks::{Block, Blocks};
use super::lender::Lender;
use super::next_readers::combined;
use super::rate::Probe;
use super::residency::Residency;
use super::runtime::Runtime;
use super::weights::SharedWeights;
use super::{Engine, Needs};
use selfrepair_core::config::RuntimeConfig;
use selfrepair_core::progress;
use selfrepair_model::Architecture;

/// Engines that take work from one list.
pub struct WorkerPool {
    engines: Vec<Engine>,
    /// Where layers are lent, because they do not all fit into memory.
    lender: Option<Arc<Lender>>,
    /// Of each engine's thread, while `bench` measures.
    probes: Vec<Option<Probe>>,
}

/// Engines that are lent their layers, for so many tasks.
pub(super) fn with_lender(
    a: &Architecture,
    directory: &Path,
    needs: &Needs,
    runtime: &Runtime,
    lender: &Arc<Lender>,
    tasks: usize,
) -> Result<Vec<Engine>> {
    let weights = SharedWeights::once(directory);
    let load = |name: &str| runtime.load(&directory.join(format!("{name}.onnx")), &weights);
    let engine = |_| Engine::with_blocks(a, Blocks::Lent(lender.clone()), vec![], needs, load);
    (0..tasks).map(engine).collect()
}

/// Loads a layer once for each thread, with one copy of its weights.
pub(super) fn lender(
    a: &Architecture,
    directory: &Path,
    config: &RuntimeConfig,
    needs: &Needs,
    runtime: &Runtime,
    layers: usize,
) -> Arc<Lender> {
    let (a, directory, needs, runtime) = (a.clone(), directory.to_path_buf(), needs.clone(), runtime.clone());
    let threads = config.thread_count();
    let load = move |layer: usize| {
        let weights = SharedWeights::once(&directory);
        let load = |name: &str| runtime.load(&directory.join(format!("{name}.onnx")), &weights);
        (0..threads).map(|_| Block::load(&a, layer, &needs, &BTreeMap::new(), load)).collect()
    };
    Arc::new(Lender::new(layers, threads, load))
}

/// Which items are taken and how much is taken and handed on, so that nobody runs far ahead of a slow item.
struct Turn {
    next: usize,
    taken: f64,
    done: f64,
    failed: bool,
}

/// Calls a function when it is dropped, also while a panic unwinds.
struct CallOnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for CallOnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

impl WorkerPool {
    /// As many engines as the runtime has threads (one on a GPU), with one copy of the weights between them. If the layers
    /// do not fit into memory, there are more engines, and they are lent the layers in turn.
    ///
    /// # Errors
    /// If a graph cannot be loaded.
    pub fn load(a: &Architecture, directory: &Path, config: &RuntimeConfig, needs: &Needs) -> Result<Self> {
        let runtime = Runtime::get(config)?;
        let residency = Residency::of(config, a, needs);
        let (engines, lender) = match residency {
            Residency::All => (Self::with_all_layers(a, directory, config, needs, &runtime)?, None),
            Residency::Some { layers, tasks } => {
                let said = format!("{layers} of {} layers at a time, with too little memory to prepare all", a.layers);
                progress::line("memory", &said);
                let lender = lender(a, directory, config, needs, &runtime, layers);
                (with_lender(a, directory, needs, &runtime, &lender, tasks)?, Some(lender))
            }
        };
        let probe = |_| config.probe.then(|| Probe::load(a, &runtime)).transpose();
        let probes = (0..engines.len()).map(probe).collect::<Result<_>>()?;
        Ok(Self { engines, lender, probes })
    }

    fn with_all_layers(
        a: &Architecture,
        directory: &Path,
        config: &RuntimeConfig,
        needs: &Needs,
        runtime: &Runtime,
    ) -> Result<Vec<Engine>> {
        let weights = SharedWeights::new(directory);
        let count = config.engine_count();
        let bar = progress::bar("load", (count * a.layers) as u64, "layers");
        let combined = combined(a, directory, runtime, &weights, needs, count)?;
        let load = || {
            let engine = Engine::load_shared(a, directory, runtime, &weights, &combined, needs)?;
            bar.inc(a.layers as u64);
            Ok(engine)
        };
        let engines = thread::scope(|scope| {
            let loading: Vec<_> = (0..count).map(|_| scope.spawn(load)).collect();
            loading
                .into_iter()
                .map(|engine| engine.join().map_err(|_| anyhow!("a thread panicked"))?)
                .collect::<Result<_>>()
        })?;
        bar.finish();
        Ok(engines)
    }

    /// In how many parts work is to be divided, so that no engine waits for another's last part. Where layers are lent,
    /// engines wait for each other anyway, and large batches are better.
    pub fn parts(&self) -> usize {
        if self.lender.is_some() { 1 } else { self.engines.len() }
    }

    /// One of the engines.
    pub fn one(&mut self) -> &mut Engine {
        &mut self.engines[0]
    }

    /// Runs `work` on every item and hands the results to `done` in the order of the items. `share` says how much of a
    /// batch's work an item is: what waits for an earlier result is at most two batches' an engine.
    ///
    /// # Errors
    /// Of the first item (in that order) that failed, or of `done`.
    pub fn each<I: Sync, T: Send>(
        &mut self,
        items: &[I],
        share: impl Fn(&I) -> f64 + Sync,
        work: impl Fn(&mut Engine, &I) -> Result<T> + Sync,
        mut done: impl FnMut(T) -> Result<()>,
    ) -> Result<()> {
        let ahead = 2.0 * self.engines.len() as f64;
        let progress = Mutex::new(Turn { next: 0, taken: 0.0, done: 0.0, failed: false });
        let changed = Condvar::new();
        let lock = || progress.lock().unwrap_or_else(|e| e.into_inner());
        thread::scope(|scope| {
            let (sender, receiver) = sync_channel::<(usize, Result<T>)>(self.engines.len());
            for (engine, probe) in self.engines.iter_mut().zip(&mut self.probes) {
                let (sender, work, share, lock, changed) = (sender.clone(), &work, &share, &lock, &changed);
                let lender = &self.lender;
                scope.spawn(move || {
                    loop {
                        let mut progress = lock();
                        while !progress.failed && progress.taken >= progress.done + ahead && progress.next < items.len()
                        {
                            progress = changed.wait(progress).unwrap_or_else(|e| e.into_inner());
                        }
                        let i = progress.next;
                        if progress.failed || i >= items.len() {
                            return;
                        }
                        progress.next += 1;
                        progress.taken += share(&items[i]);
                        drop(progress);
                        let task = lender.as_ref().map(|lender| lender.task());
                        let result = work(engine, &items[i]);
                        drop(task);
                        let result = probe.as_mut().map_or(Ok(()), |probe| probe.take(share(&items[i]))).and(result);
                        if sender.send((i, result)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            let mut waiting = BTreeMap::new();
            let mut next = 0;
            let mut hand_on = || -> Result<()> {
                for (i, result) in &receiver {
                    waiting.insert(i, result);
                    while let Some(result) = waiting.remove(&next) {
                        done(result?)?;
                        lock().done += share(&items[next]);
                        next += 1;
                        changed.notify_all();
                    }
                }
                // A thread that panicked has left without a result.
                if next == items.len() { Ok(()) } else { Err(anyhow!("a thread stopped at item {next}")) }
            };
            // Nobody may wait for ever: for a turn, or for a place in the channel; also if `done` panics.
            let stop = CallOnDrop(|| {
                lock().failed = true;
                changed.notify_all();
            });
            let result = hand_on();
            drop(stop);
            drop(receiver);
            result
        })
    }

    /// As [`WorkerPool::each`], for items that belong to shards, all of one after those of another. A shard begins with
    /// `open`, takes the results of its items by `absorb`, and is handed to `finish` when the last is in, while the
    /// engines are at work on the next.
    pub fn each_of_shards<I: Sync, T: Send, S>(
        &mut self,
        items: &[(usize, I)],
        share: impl Fn(&I) -> f64 + Sync,
        work: impl Fn(&mut Engine, &I) -> Result<T> + Sync,
        open: impl Fn(usize) -> Result<S>,
        mut absorb: impl FnMut(&mut S, T) -> Result<()>,
        mut finish: impl FnMut(usize, S) -> Result<()>,
    ) -> Result<()> {
        let mut current: Option<(usize, S)> = None;
        let of_item = |engine: &mut Engine, (shard, item): &(usize, I)| Ok((*shard, work(engine, item)?));
        self.each(
            items,
            |(_, item)| share(item),
            of_item,
            |(number, part)| {
                if current.as_ref().is_none_or(|(open, _)| *open != number)
                    && let Some((number, whole)) = current.replace((number, open(number)?))
                {
                    finish(number, whole)?;
                }
                current.as_mut().map_or(Ok(()), |(_, shard)| absorb(shard, part))
            },
        )?;
        current.map_or(Ok(()), |(number, whole)| finish(number, whole))
    }
}
