//! The measurement version and the commit of the program. Both are written into every file.

use std::sync::OnceLock;

/// Raised by hand whenever a measured number can change. It is part of every stage's fingerprint, so that numbers of two
/// versions are never mixed. `tests/suite/golden.rs` fails when numbers change.
pub const MEASUREMENT_VERSION: u32 = 3;

static COMMIT: OnceLock<&'static str> = OnceLock::new();

/// Says which commit this program was built from. The first call wins.
pub fn built_from(commit: &'static str) {
    COMMIT.set(commit).ok();
}

/// The commit this program was built from; `unknown` outside git, and if [`built_from`] was not called.
pub fn commit() -> &'static str {
    COMMIT.get().copied().unwrap_or("unknown")
}
