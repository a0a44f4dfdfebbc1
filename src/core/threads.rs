//! Threads: whether the system can start them, and environment variables that set their number.

use std::sync::{Arc, PoisonError, RwLock};
use std::thread;

use anyhow::{Context, Result, ensure};

/// Said where the system gives no more threads.
pub const NONE_LEFT: &str = "cannot start a thread: this user or control group may have no more processes and threads \
                             (ulimit -u, pids.max), or there is no memory for its stack";

/// Variables that libraries read. Some libraries panic on a value that is not a number, or on too many threads.
const VARIABLES: [&str; 3] = ["TOKIO_WORKER_THREADS", "RAYON_NUM_THREADS", "POLARS_MAX_THREADS"];

/// More than any machine has use for.
const MOST: usize = 4096;

/// # Errors
/// If a variable that says how many threads a library starts does not hold such a number.
pub fn check_environment() -> Result<()> {
    VARIABLES.iter().try_for_each(|name| match std::env::var_os(name) {
        Some(value) => check_variable(name, &value.to_string_lossy()),
        None => Ok(()),
    })
}

fn check_variable(name: &str, value: &str) -> Result<()> {
    let is_count = value.trim().parse().is_ok_and(|n: usize| (1..=MOST).contains(&n));
    // For rayon, 0 means unset, and so does an empty variable.
    let is_unset = value.is_empty() || name.starts_with("RAYON") && value == "0";
    ensure!(
        is_count || is_unset,
        "the environment variable {name} is `{value}`; expected a whole number from 1 to {MOST}, or unset it"
    );
    Ok(())
}

/// Bytes of a thread's stack, if nothing says otherwise.
pub const STACK: usize = 2 << 20;

/// Starts so many threads with stacks of that size that do nothing, so that it is known before anything is computed whether there will be any:
/// libraries that get none panic.
///
/// # Errors
/// If the system does not give them.
pub fn check_available(count: usize, stack: usize) -> Result<()> {
    let gate = Arc::new(RwLock::new(()));
    let closed = gate.write().unwrap_or_else(PoisonError::into_inner);
    let mut waiting = Vec::new();
    let start = |_| {
        let gate = Arc::clone(&gate);
        let wait = move || drop(gate.read().unwrap_or_else(PoisonError::into_inner));
        waiting.push(thread::Builder::new().stack_size(stack).spawn(wait)?);
        Ok::<_, std::io::Error>(())
    };
    let started = (0..count).try_for_each(start);
    drop(closed);
    waiting.into_iter().for_each(|thread| thread.join().unwrap_or_default());
    started.context(NONE_LEFT).with_context(|| format!("{count} threads are needed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_threads_is_a_number() {
        for (name, value) in
            [("TOKIO_WORKER_THREADS", "4"), ("RAYON_NUM_THREADS", "0"), ("POLARS_MAX_THREADS", "4096"), ("X", "")]
        {
            check_variable(name, value).unwrap();
        }
        for value in ["0", "x", "-1", "1.5", "4097", "99999999999999999999"] {
            let error = check_variable("TOKIO_WORKER_THREADS", value).unwrap_err().to_string();
            assert!(error.contains("TOKIO_WORKER_THREADS") && error.contains(value), "{error}");
        }
    }

    #[test]
    fn threads_that_there_are_are_found_and_given_back() {
        check_available(20, STACK).unwrap();
        assert!(check_available(1, usize::MAX / 4).is_err());
    }
}
