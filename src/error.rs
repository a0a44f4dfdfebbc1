//! The error type of the library.

use selfrepair_core::error::ErrorKind;

/// What went wrong. The text names the file, key, tensor or row, what was expected, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A checkpoint or tokenizer cannot be read or is not supported.
    #[error("{0:#}")]
    Checkpoint(anyhow::Error),
    /// What was asked for does not fit the model, or is not well formed.
    #[error("{0:#}")]
    Configuration(anyhow::Error),
    /// An allocation failed, here or inside ONNX Runtime. Smaller batches may help.
    #[error("{0:#}")]
    OutOfMemory(anyhow::Error),
    /// Numbers that must agree do not, or one is not finite.
    #[error("{0:#}")]
    FailedCheck(anyhow::Error),
    /// The work was told to stop ([`selfrepair_core::interrupt::stop`]).
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
    /// An error of a kind that is told apart everywhere, or else `other`.
    pub(crate) fn or(error: anyhow::Error, other: fn(anyhow::Error) -> Self) -> Self {
        match ErrorKind::of(&error) {
            ErrorKind::Interrupted => Self::Interrupted,
            ErrorKind::OutOfMemory => Self::OutOfMemory(error),
            ErrorKind::FailedCheck => Self::FailedCheck(error),
            ErrorKind::Other => other(error),
        }
    }
}
