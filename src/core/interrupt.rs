//! Stopping early. The program calls [`stop`]; long work calls [`check`] between two batches and returns
//! [`Interrupted`]. Everything written by then is kept.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Error, Result};
use tempfile::TempDir;

static STOP: AtomicBool = AtomicBool::new(false);

/// Temporary folders, removed also where the process ends at once.
static SCRATCH: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

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

/// An empty temporary folder that is removed when it is dropped, and by [`remove_scratch_folders`].
///
/// # Errors
/// If there is no place for it.
pub fn scratch_folder(prefix: &str) -> Result<TempDir> {
    let folder = tempfile::Builder::new().prefix(prefix).tempdir().context("cannot create a temporary folder")?;
    let mut all = SCRATCH.lock().unwrap_or_else(PoisonError::into_inner);
    all.retain(|path| path.exists());
    all.push(folder.path().to_path_buf());
    Ok(folder)
}

/// Removes all folders that [`scratch_folder`] made, for a program that ends without running destructors. It does not
/// wait for another thread that holds their list.
pub fn remove_scratch_folders() {
    if let Ok(folders) = SCRATCH.try_lock() {
        folders.iter().for_each(|folder| std::fs::remove_dir_all(folder).unwrap_or_default());
    }
}
