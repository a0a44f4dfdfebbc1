//! Kinds of errors, which a caller can tell apart without reading the message.

use anyhow::Error;

use crate::{interrupt, memory};

/// A check of the measurement failed: numbers that must agree differ, or a number is not finite. Its rows are not written.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FailedCheck(pub String);

/// The kind of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The work was stopped ([`interrupt::stop`]).
    Interrupted,
    /// An allocation failed, here or inside ONNX Runtime.
    OutOfMemory,
    /// A check of the measurement failed ([`FailedCheck`]).
    FailedCheck,
    /// Anything else.
    Other,
}

impl ErrorKind {
    /// The kind of an error, with any context around it.
    pub fn of(error: &Error) -> Self {
        if interrupt::is_interruption(error) {
            Self::Interrupted
        } else if memory::is_exhausted(error) {
            Self::OutOfMemory
        } else if error.chain().any(|e| e.is::<FailedCheck>()) {
            Self::FailedCheck
        } else {
            Self::Other
        }
    }
}

/// Returns a [`FailedCheck`](crate::error::FailedCheck) with a message.
#[macro_export]
macro_rules! fail_check {
    ($($message:tt)*) => {
        return Err($crate::error::FailedCheck(format!($($message)*)).into())
    };
}

/// Returns a [`FailedCheck`](crate::error::FailedCheck) with a message unless a condition holds.
#[macro_export]
macro_rules! ensure_check {
    ($condition:expr, $($message:tt)*) => {
        if $condition {
        } else {
            $crate::fail_check!($($message)*)
        }
    };
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn kinds_are_found_below_any_context() {
        let check = || -> anyhow::Result<()> { fail_check!("1 is not {}", 2) };
        let error = check().context("prompt 3").unwrap_err();
        assert_eq!(format!("{error:#}"), "prompt 3: 1 is not 2");
        assert_eq!(ErrorKind::of(&error), ErrorKind::FailedCheck);
        let exhausted = memory::try_with_capacity::<f32>(usize::MAX / 8).context("a batch").unwrap_err();
        assert_eq!(ErrorKind::of(&exhausted), ErrorKind::OutOfMemory);
        let stopped = Err::<(), _>(interrupt::Interrupted).context("a batch").unwrap_err();
        assert_eq!(ErrorKind::of(&stopped), ErrorKind::Interrupted);
        assert_eq!(ErrorKind::of(&anyhow::anyhow!("why")), ErrorKind::Other);
    }
}
