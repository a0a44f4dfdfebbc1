//! Memory: how much the machine has, and how much a call of the graphs takes. A batch that does not fit is made
//! smaller; values change by float32 rounding only.

mod group;

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
