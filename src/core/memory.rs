//! Memory: how much the machine has, and how much a call of the graphs takes. A batch that does not fit is made
//! smaller; values change by float32 rounding only.

mod group;

use std::cell::{Cell, RefCell};
use std::fs;
use std::path::Path;

use anyhow::{Context, Error, Result};

/// Whether an error says that an allocation failed, in the words of ONNX Runtime, C++ or CUDA.
pub fn is_exhausted(error: &Error) -> bool {
    let words = ["bad_alloc", "bad allocation", "Failed to allocate", "failed to allocate", "out of memory"];
    error.chain().any(|e| {
        let text = e.to_string();
        words.iter().any(|w| text.contains(w))
    })
}

/// An empty list with capacity `n`. Buffers that grow with the batch are allocated here, because a failed allocation
/// elsewhere ends the process.
///
/// # Errors
/// If there is no such memory, as [`is_exhausted`] knows it.
pub fn try_with_capacity<T>(n: usize) -> Result<Vec<T>> {
    let mut list = Vec::new();
    let bytes = n.saturating_mul(size_of::<T>());
    list.try_reserve_exact(n).with_context(|| format!("out of memory for a list of {bytes} bytes"))?;
    Ok(list)
}

/// The same values in memory of their own, as [`try_with_capacity`] gives it.
pub fn copied<T: Copy>(values: &[T]) -> Result<Vec<T>> {
    let mut list = try_with_capacity(values.len())?;
    list.extend_from_slice(values);
    Ok(list)
}

thread_local! {
    /// Bytes that this thread may still take; `i64::MAX` without a limit.
    static LEFT: Cell<i64> = const { Cell::new(i64::MAX) };
    static LIMITED: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs a library that takes as much memory as a file says. On this thread it may take `most` bytes more than before; the
/// program's allocator ends the process beyond that, with an error that has `name` in it. Another program's allocator
/// knows no limit.
pub fn with_at_most<T>(most: u32, name: &str, read: impl FnOnce() -> T) -> T {
    LIMITED.with_borrow_mut(|limited| {
        limited.clear();
        limited.push_str(name);
    });
    let outer = LEFT.replace(i64::from(most));
    let result = read();
    LEFT.set(outer);
    result
}

/// For an allocator: whether this thread may take so many bytes.
pub fn may_take(bytes: usize) -> bool {
    let left = LEFT.get();
    if left == i64::MAX {
        return true;
    }
    LEFT.set(left.saturating_sub(bytes as i64));
    LEFT.get() >= 0
}

/// For an allocator: this thread gives bytes back.
pub fn give_back(bytes: usize) {
    let left = LEFT.get();
    if left != i64::MAX {
        LEFT.set(left.saturating_add(bytes as i64).min(i64::MAX - 1));
    }
}

/// What this thread took more memory for than it may. There is no limit from now on.
pub fn limited() -> String {
    LEFT.set(i64::MAX);
    LIMITED.with_borrow(String::clone)
}

/// Bytes that this process can still have: the machine's, its control groups' and its own limit. `None` where none of
/// them can be asked.
pub fn available() -> Option<u64> {
    let limits = [of_machine(), group::left(Path::new("/")), of_process()];
    limits.into_iter().flatten().min()
}

fn of_machine() -> Option<u64> {
    kilobytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

/// The limit on address space (`ulimit -v`), less what is in use.
fn of_process() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|l| l.strip_prefix("Max address space"))?;
    let limit: u64 = line.split_whitespace().next()?.parse().ok()?;
    let used = kilobytes(&fs::read_to_string("/proc/self/status").ok()?, "VmSize:")?;
    Some(limit.saturating_sub(used))
}

fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|l| l.strip_prefix(key))?;
    Some(value.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocation_failures_are_told_from_other_errors() {
        let of = |text: &'static str| is_exhausted(&anyhow::anyhow!(text).context("running the graph mlp_03"));
        assert!(of("std::bad_alloc") && of("Failed to allocate memory for requested buffer of size 1"));
        assert!(!of("the graph mlp_03 lacks one of its outputs"));
    }

    #[test]
    fn memory_that_is_refused_is_an_error_that_is_known() {
        let refused = try_with_capacity::<f32>(usize::MAX / 8).unwrap_err();
        assert!(is_exhausted(&refused) && refused.to_string().contains("out of memory for a list of"), "{refused}");
        assert_eq!(copied(&[1.5, 2.5]).unwrap(), [1.5, 2.5]);
    }

    #[test]
    fn kilobytes_are_read_by_their_key() {
        assert_eq!(kilobytes("MemFree:  1 kB\nMemAvailable:   2048 kB\n", "MemAvailable:"), Some(2 << 20));
        assert_eq!(kilobytes("MemFree:  1 kB\n", "MemAvailable:"), None);
    }
}
