//! Threads with stacks large enough for deep queries.

use std::ops::Deref;
use std::sync::Once;
use std::thread;

use anyhow::{Context, Result};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;

use selfrepair_core::threads::{NONE_LEFT, check_available};
use selfrepair_core::untrusted::{caught, quiet_this_thread, without_panic};

/// Bytes of address space; memory is taken as it is used. A query as deep as is allowed needs a few percent of it.
const PLANNING: usize = 64 << 20;

/// Of a thread that computes rows: expressions are evaluated from within each other there.
const WORKING: usize = 16 << 20;

/// Below so much a function of DataFusion that calls itself goes on on another stack: what it calls in between must have
/// room in it.
const LEAST: usize = 1 << 20;

/// Said where the query engine panics.
pub const FAULT: &str = "the query engine failed on this query (a bug in the engine); write the query in another way";

/// What a function gives that may call itself often.
///
/// # Errors
/// If there is no thread for it, or it panics.
pub fn on_large_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    static SETTINGS: Once = Once::new();
    SETTINGS.call_once(|| {
        recursive::set_minimum_stack_size(LEAST);
        recursive::set_stack_allocation_size(WORKING);
    });
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("planning".into()).stack_size(PLANNING);
        let thread = thread.spawn_scoped(scope, || caught(work)).context(NONE_LEFT)?;
        thread.join().ok().flatten().context(FAULT)
    })
}

/// As [`on_large_stack`], without waiting for the end: abandoned work continues in the background until it is done.
pub fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<oneshot::Receiver<Option<T>>> {
    let (sender, receiver) = oneshot::channel();
    let thread = thread::Builder::new().name("planning".into()).stack_size(PLANNING);
    thread.spawn(move || sender.send(caught(work)).is_ok()).context(NONE_LEFT)?;
    Ok(receiver)
}

/// Threads that compute rows: one per core, whatever `TOKIO_WORKER_THREADS` says. At the end nothing waits for what they
/// are still at.
pub struct Workers {
    handle: Handle,
    runtime: Option<Runtime>,
}

impl Workers {
    pub fn new() -> Result<Self> {
        let runtime = runtime(thread::available_parallelism().map_or(1, |n| n.get()))?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }

    /// Waits for work that reads a run's files, which anything can have written.
    pub fn read<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        without_panic(|| self.handle.block_on(work))
    }
}

impl Deref for Workers {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.runtime.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

/// # Errors
/// If the system does not give so many threads.
pub fn runtime(count: usize) -> Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(count).thread_stack_size(WORKING).on_thread_start(quiet_this_thread).enable_all();
    // Where tokio gets only some of its threads, it waits for those without end; where it gets none, it panics.
    check_available(count, WORKING)?;
    caught(|| builder.build()).context(NONE_LEFT)?.context(NONE_LEFT)
}
