//! Signals, and the ends of the process that no error reaches. Everything a run writes survives being killed, so that
//! stopping early is a courtesy: the batches at work are dropped, files that are being written are finished, and the user
//! is told how to resume.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use selfrepair_core::interrupt;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::terminal::say;

/// Exit status of a run that was told to stop (128 + SIGINT, as shells have it).
pub const EXIT: u8 = 130;

/// Work that cannot be stopped between batches (a download, a long query) gets this long to end by itself.
const GRACE: Duration = Duration::from_secs(10);

/// What the first Ctrl-C or SIGTERM does.
#[derive(Clone)]
enum Stop {
    /// [`interrupt::check`] fails from then on. The text says how to resume where there was no time for an orderly end.
    Orderly(String),
    /// The process ends: nothing of it must be put in order.
    AtOnce,
}

/// From now on the first Ctrl-C or SIGTERM stops the run between two batches, and a second one ends the process at once.
/// `resume` is what to tell the user when there was no time for an orderly end.
pub fn watch(resume: String) -> Result<()> {
    listen(&[SignalKind::interrupt(), SignalKind::terminate()], Stop::Orderly(resume))
}

/// From now on Ctrl-C or SIGTERM ends the process, after its temporary folders are removed.
pub fn end_at_once() -> Result<()> {
    listen(&[SignalKind::interrupt(), SignalKind::terminate()], Stop::AtOnce)
}

/// As [`end_at_once`], for a prompt: Ctrl-C cancels a query there, and a terminal that is closed ends the process.
pub fn end_with_the_terminal() -> Result<()> {
    listen(&[SignalKind::terminate(), SignalKind::hangup()], Stop::AtOnce)
}

fn listen(kinds: &[SignalKind], stop: Stop) -> Result<()> {
    let place = "cannot listen for Ctrl-C";
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let guard = runtime.enter();
    let signals: Vec<Signal> = kinds.iter().map(|kind| signal(*kind)).collect::<Result<_, _>>().context(place)?;
    drop(guard);
    let work = move || {
        for signal in signals {
            runtime.spawn(stop_at(signal, stop.clone()));
        }
        runtime.block_on(std::future::pending::<()>());
    };
    thread::Builder::new().name("signals".into()).spawn(work).context(place)?;
    Ok(())
}

async fn stop_at(mut signal: Signal, stop: Stop) {
    while signal.recv().await.is_some() {
        let Stop::Orderly(resume) = &stop else { leave("interrupted") };
        if interrupt::stop() {
            leave(resume);
        }
        say("stopping after the batch at work; press Ctrl-C again to stop at once");
        let resume = resume.clone();
        let late = move || {
            thread::sleep(GRACE);
            leave(&resume);
        };
        // Without another thread there is no limit on the time, and a second signal still ends the process.
        thread::Builder::new().spawn(late).ok();
    }
}

/// From now on, writing to a file that may not grow (`ulimit -f`) is an error that names the file, and does not end the
/// process.
#[allow(unsafe_code)]
pub fn ignore_file_size_signal() {
    // SAFETY: `signal` with SIG_IGN installs no code of this process; no other thread runs yet.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// Ends the process of a run that was told to stop.
fn leave(text: &str) -> ! {
    say(text);
    exit(EXIT)
}

/// Ends the process with an error, where there is nobody to hand it to.
pub fn fail(text: &str) -> ! {
    say(text);
    exit(1)
}

/// Without running destructors: other threads are still inside libraries that would be torn down.
#[allow(unsafe_code)]
fn exit(status: u8) -> ! {
    interrupt::remove_scratch_folders();
    // SAFETY: `_exit` takes a number, never returns, and runs no code of this process.
    unsafe { libc::_exit(i32::from(status)) }
}
