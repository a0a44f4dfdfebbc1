//! Libraries that read bytes from outside: some of them panic on bytes that were spoilt.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};

use anyhow::{Result, anyhow};

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread runs code whose panics are caught by [`without_panic`]. A program's panic hook asks it, so that
/// such a panic is not printed.
pub fn is_guarded() -> bool {
    GUARDED.get()
}

/// Runs code of a library on bytes from outside.
///
/// # Errors
/// Those of `read`; a panic of the library is one too.
pub fn without_panic<T>(read: impl FnOnce() -> Result<T>) -> Result<T> {
    caught(read).unwrap_or_else(|| Err(anyhow!("a part of it has the wrong form")))
}

/// What a library gives; nothing where it panics.
pub fn caught<T>(work: impl FnOnce() -> T) -> Option<T> {
    let outer = GUARDED.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(outer);
    result.ok()
}

/// From now on, panics of this thread count as caught: whoever waits for its work learns of them.
pub fn quiet_this_thread() {
    GUARDED.set(true);
}

#[cfg(test)]
mod tests {
    use super::without_panic;

    #[test]
    fn a_panic_is_an_error_and_values_and_errors_are_what_they_were() {
        let nothing: [u8; 0] = [];
        let error = without_panic(|| Ok(nothing[std::hint::black_box(0)])).unwrap_err();
        assert!(error.to_string().contains("wrong form"));
        assert_eq!(without_panic(|| Ok(7)).unwrap(), 7);
        assert!(without_panic::<u8>(|| anyhow::bail!("why")).unwrap_err().to_string().contains("why"));
    }
}
