//! Ctrl-C and SIGTERM. Everything a run writes survives being killed, so that stopping early is a courtesy: the batches at
//! work are dropped, files that are being written are finished, and the user is told how to resume.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use selfrepair_core::interrupt;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Exit status of a run that was told to stop (128 + SIGINT, as shells have it).
pub const EXIT: u8 = 130;

/// Work that cannot be stopped between batches (a download, a long query) gets this long to end by itself.
const GRACE: Duration = Duration::from_secs(10);

/// From now on the first Ctrl-C or SIGTERM stops the run between two batches, and a second one ends the process at once.
/// `resume` is what to tell the user when there was no time for an orderly end.
pub fn watch(resume: String) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let guard = runtime.enter();
    let signals = [SignalKind::interrupt(), SignalKind::terminate()].map(signal);
    drop(guard);
    let [interrupt, terminate] = signals;
    let place = "cannot listen for Ctrl-C";
    let (interrupt, terminate) = (interrupt.context(place)?, terminate.context(place)?);
    thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.spawn(stop_at(terminate, resume.clone()));
        runtime.block_on(stop_at(interrupt, resume));
    })?;
    Ok(())
}

async fn stop_at(mut signal: Signal, resume: String) {
    while signal.recv().await.is_some() {
        if interrupt::stop() {
            leave(&resume);
        }
        eprintln!("stopping after the batch at work; press Ctrl-C again to stop at once");
        let resume = resume.clone();
        thread::spawn(move || {
            thread::sleep(GRACE);
            leave(&resume);
        });
    }
}

/// Ends the process without running destructors: other threads are still inside libraries that would be torn down.
#[allow(unsafe_code)]
fn leave(resume: &str) -> ! {
    eprintln!("{resume}");
    // SAFETY: `_exit` takes a number, never returns, and runs no code of this process.
    unsafe { libc::_exit(i32::from(EXIT)) }
}
