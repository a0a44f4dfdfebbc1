//! The error type of the library.

use selfrepair_core::error::ErrorKind;

/// What went wrong. The text names the file, key, tensor or row, what was expected, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A checkpoint or tokenizer cannot be read or is not supported.
    #[error("{0:#}")]
    Checkpoint(anyhow::Error),
    /// A setting or name is malformed, or does not fit the model.
    #[error("{0:#}")]
    Configuration(anyhow::Error),
    /// An allocation failed, here or inside ONNX Runtime. Smaller batches may help.
    #[error("{0:#}")]
    OutOfMemory(anyhow::Error),
    /// A check failed: numbers that must agree differ, or a number is not finite.
    #[error("{0:#}")]
    FailedCheck(anyhow::Error),
    /// The work was stopped ([`selfrepair_core::interrupt::stop`]).
    #[error("interrupted")]
    Interrupted,
    /// Anything else: files, ONNX Runtime, the network.
    #[error("{0:#}")]
    Other(anyhow::Error),
}

impl From<anyhow::Error> for Error {
    fn from(error: anyhow::Error) -> Self {
        Self::or(error, Self::Other)
    }
}

impl Error {
    /// Maps the kinds that every layer distinguishes; any other error becomes `other`.
    pub(crate) fn or(error: anyhow::Error, other: fn(anyhow::Error) -> Self) -> Self {
        match ErrorKind::of(&error) {
            ErrorKind::Interrupted => Self::Interrupted,
            ErrorKind::OutOfMemory => Self::OutOfMemory(error),
            ErrorKind::FailedCheck => Self::FailedCheck(error),
            ErrorKind::Other => other(error),
        }
    }
}
