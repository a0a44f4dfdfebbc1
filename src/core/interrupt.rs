//! Stopping early. Whoever runs the library calls [`stop`]; long work calls [`check`] between two batches and ends with
//! [`Interrupted`]. Everything that was written by then is kept.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use anyhow::{Error, Result};

static STOP: AtomicBool = AtomicBool::new(false);

/// The error that ends work which was told to stop.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Tells all work of this process to stop. Returns whether it had been told before.
pub fn stop() -> bool {
    STOP.swap(true, Relaxed)
}

/// # Errors
/// [`Interrupted`], once the process was told to [`stop`].
pub fn check() -> Result<()> {
    if STOP.load(Relaxed) { Err(Interrupted.into()) } else { Ok(()) }
}

/// Whether an error is no failure but the end of work that was told to stop.
pub fn is_interruption(error: &Error) -> bool {
    error.chain().any(|e| e.is::<Interrupted>())
}
