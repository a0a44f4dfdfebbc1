//! Layers that are loaded for a time, because not all of them fit into memory.
//!
//! Several tasks, each with batches of its own, go through the layers at once. A layer is loaded when all running
//! tasks wait for one that is not there; then every task that waits for it uses it before the next is loaded. So the file of
//! weights is read once for all tasks that go through the layers together.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, MutexGuard};

use anyhow::Result;
use selfrepair_core::memory::is_exhausted;

use crate::blocks::Block;

/// Loads the graphs of a layer, as many times as there are threads.
type Load = dyn Fn(usize) -> Result<Vec<Block>> + Send + Sync;

/// Lends layers to tasks, and loads them.
pub struct Lender {
    load: Box<Load>,
    /// Layers that may be lent at the same time.
    threads: usize,
    /// Layers that may be there at the same time.
    most: AtomicUsize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// By layer: what is not lent.
    loaded: BTreeMap<usize, Vec<Block>>,
    /// By layer, how many are lent.
    lent: BTreeMap<usize, usize>,
    /// By layer, how many tasks wait for it.
    waiting: BTreeMap<usize, usize>,
    /// Tasks that are running.
    tasks: usize,
    /// The layer that was loaded last.
    last: usize,
    is_loading: bool,
}

impl Lender {
    /// `most` layers may be there at the same time; `load` loads one, once for each of `threads`.
    pub fn new(
        most: usize,
        threads: usize,
        load: impl Fn(usize) -> Result<Vec<Block>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            load: Box::new(load),
            threads,
            most: AtomicUsize::new(most.max(1)),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// While what is returned lives, no layer is loaded before this task waits, too.
    pub fn task(&self) -> Task<'_> {
        self.state().tasks += 1;
        Task(self)
    }

    /// Waits until a layer is there; a task that waits may load one for another.
    ///
    /// # Errors
    /// If the layer that this task loads cannot be loaded.
    pub fn borrow(&self, layer: usize) -> Result<Loan<'_>> {
        let mut state = self.state();
        *state.waiting.entry(layer).or_default() += 1;
        loop {
            let can_lend = !state.is_loading && state.lent.values().sum::<usize>() < self.threads;
            let block = state.loaded.get_mut(&layer).filter(|_| can_lend).and_then(Vec::pop);
            if let Some(block) = block {
                state.stop_waiting(layer);
                *state.lent.entry(layer).or_default() += 1;
                return Ok(Loan { lender: self, layer, block: Some(Box::new(block)) });
            }
            let Some(next) = state.next_to_load() else {
                state = self.changed.wait(state).unwrap_or_else(|e| e.into_inner());
                continue;
            };
            state.is_loading = true;
            drop(state);
            let loading = Loading { lender: self, waits_for: layer };
            let blocks = self.load(next)?;
            state = loading.done();
            state.last = next;
            state.loaded.insert(next, blocks);
        }
    }

    /// Loads a layer in place of others, if too many are there, or if there is no memory beside them.
    fn load(&self, layer: usize) -> Result<Vec<Block>> {
        let most = self.most.load(Relaxed);
        while self.state().loaded.len() >= most {
            if !self.remove_one() {
                break;
            }
        }
        loop {
            match (self.load)(layer) {
                Err(error) if is_exhausted(&error) && self.remove_one() => {
                    self.most.store(self.state().loaded.len() + 1, Relaxed);
                }
                result => return result,
            }
        }
    }

    /// False if no layer can go.
    fn remove_one(&self) -> bool {
        let mut state = self.state();
        let removed = state.least_wanted().and_then(|layer| state.loaded.remove(&layer));
        drop(state);
        removed.is_some()
    }
}

impl State {
    fn stop_waiting(&mut self, layer: usize) {
        if let Some(count) = self.waiting.get_mut(&layer) {
            *count -= 1;
            if *count == 0 {
                self.waiting.remove(&layer);
            }
        }
    }

    /// The layer to load now: of those that are waited for the next after the last one, or the first. None while a task
    /// can still go on with what is there.
    fn next_to_load(&self) -> Option<usize> {
        let waiting: usize = self.waiting.values().sum();
        let can_go_on = |layer: &usize| self.loaded.contains_key(layer);
        let is_busy = self.is_loading || !self.lent.is_empty() || waiting < self.tasks;
        if is_busy || self.waiting.keys().any(can_go_on) {
            return None;
        }
        self.waiting.range(self.last..).chain(self.waiting.iter()).map(|(&layer, _)| layer).next()
    }

    /// The layer to remove: the lowest that nobody has or waits for. Ablated runs begin late, so the last layers are used most.
    fn least_wanted(&self) -> Option<usize> {
        let is_wanted = |layer: &usize| self.waiting.contains_key(layer) || self.lent.contains_key(layer);
        self.loaded.keys().copied().find(|layer| !is_wanted(layer))
    }
}

/// A layer that is being loaded by a task that waits for one.
struct Loading<'a> {
    lender: &'a Lender,
    waits_for: usize,
}

impl<'a> Loading<'a> {
    /// The task goes on waiting.
    fn done(self) -> MutexGuard<'a, State> {
        let lender = self.lender;
        std::mem::forget(self);
        let mut state = lender.state();
        state.is_loading = false;
        lender.changed.notify_all();
        state
    }
}

/// The layer could not be loaded, or its loading panicked.
impl Drop for Loading<'_> {
    fn drop(&mut self) {
        let mut state = self.lender.state();
        state.is_loading = false;
        state.stop_waiting(self.waits_for);
        self.lender.changed.notify_all();
    }
}

/// A task that is running: it either waits for a layer, or may soon ask for one.
pub struct Task<'a>(&'a Lender);

impl Drop for Task<'_> {
    fn drop(&mut self) {
        self.0.state().tasks -= 1;
        self.0.changed.notify_all();
    }
}

/// A layer that is lent.
pub struct Loan<'a> {
    lender: &'a Lender,
    layer: usize,
    block: Option<Box<Block>>,
}

impl Deref for Loan<'_> {
    type Target = Block;

    fn deref(&self) -> &Block {
        self.block.as_ref().unwrap_or_else(|| unreachable!("a loan has its block until it is dropped"))
    }
}

impl DerefMut for Loan<'_> {
    fn deref_mut(&mut self) -> &mut Block {
        self.block.as_mut().unwrap_or_else(|| unreachable!("a loan has its block until it is dropped"))
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        let mut state = self.lender.state();
        if let Some(block) = self.block.take() {
            state.loaded.entry(self.layer).or_default().push(*block);
        }
        if let Some(count) = state.lent.get_mut(&self.layer) {
            *count -= 1;
            if *count == 0 {
                state.lent.remove(&self.layer);
            }
        }
        self.lender.changed.notify_all();
    }
}
