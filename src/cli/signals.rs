//! Signals and immediate exits. A run can be killed at any moment, so an orderly stop is only a courtesy: current batches
//! are discarded, files that are being written are finished, and a message says how to resume.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use selfrepair_core::interrupt;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::terminal::say;

/// Exit status of an interrupted run (128 + SIGINT, the shell convention).
pub const EXIT: u8 = 130;

/// How long work that cannot be stopped between batches (a download, a long query) may take to end.
const GRACE: Duration = Duration::from_secs(10);

/// What the first Ctrl-C or SIGTERM does.
#[derive(Clone)]
enum Stop {
    /// [`interrupt::check`] fails from then on. The text says how to resume after an exit that was not orderly.
    Orderly(String),
    /// The process exits: there is nothing to clean up.
    AtOnce,
}

/// From now on the first Ctrl-C or SIGTERM stops the run between two batches, and a second one ends the process at once.
/// `resume` is the message if the end is not orderly.
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
        say("stopping after the current batch; press Ctrl-C again to stop at once");
        let resume = resume.clone();
        let late = move || {
            thread::sleep(GRACE);
            leave(&resume);
        };
        // Without another thread there is no limit on the time, and a second signal still ends the process.
        thread::Builder::new().spawn(late).ok();
    }
}

/// From now on, exceeding the file size limit (`ulimit -f`) is an error that names the file, and does not end the process.
#[allow(unsafe_code)]
pub fn ignore_file_size_signal() {
    // SAFETY: `signal` with SIG_IGN installs no code of this process; no other thread runs yet.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// Ends the process of an interrupted run.
fn leave(text: &str) -> ! {
    say(text);
    exit(EXIT)
}

/// Ends the process with an error that cannot be returned to a caller.
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
