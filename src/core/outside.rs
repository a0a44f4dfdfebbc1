//! Libraries that read bytes from outside: some of them panic on bytes that were spoilt.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use anyhow::{Result, anyhow};

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// What a library makes of bytes from outside. Where it panics on them, that is an error like any other, and nothing is
/// printed.
pub fn without_panic<T>(read: impl FnOnce() -> Result<T>) -> Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                before(info);
            }
        }));
    });
    let outer = GUARDED.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(read));
    GUARDED.set(outer);
    result.unwrap_or_else(|_| Err(anyhow!("a part of it has the wrong form")))
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
