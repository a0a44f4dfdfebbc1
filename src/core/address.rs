//! Refuses addresses where a local path is expected: `s3://bucket/x` is not a local folder, though it parses as a path.

use std::path::Path;

use anyhow::{Result, bail};

/// Schemes that are known to be addresses even without `//`.
const KNOWN: [&str; 12] = ["s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "http", "https", "ftp", "file"];

/// The scheme of what is an address and no path, in small letters: `s3` of `s3://bucket/x` and of `s3:/bucket/x`.
/// `./s3:/x` is a path.
pub fn scheme(path: &Path) -> Option<String> {
    let text = path.to_string_lossy();
    let (scheme, rest) = text.split_once(':')?;
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    let scheme = scheme.to_ascii_lowercase();
    (is_scheme && (rest.starts_with("//") || KNOWN.contains(&scheme.as_str()))).then_some(scheme)
}

/// That `option` names a place on this machine.
///
/// # Errors
/// If it names an address. What else it holds is not shown: it may have a password.
pub fn refuse(path: &Path, option: &str, what: &str) -> Result<()> {
    let Some(scheme) = scheme(path) else { return Ok(()) };
    bail!(
        "{option} is an address ({scheme}:…), but {what} on this machine; name a local folder or file, and copy it to \
        the address afterwards (`aws s3 cp --recursive`, `pipeline push` for the Hugging Face hub)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_from_paths() {
        for (text, expected) in [
            ("s3://bucket/x", Some("s3")),
            ("S3://bucket", Some("s3")),
            ("s3:/bucket", Some("s3")),
            ("s3:", Some("s3")),
            ("hf:me/x", Some("hf")),
            ("azure+x://y", Some("azure+x")),
            ("file:///tmp/x", Some("file")),
            ("out", None),
            ("./s3:/x", None),
            ("/tmp/a://b", None),
            ("run:1", None),
            ("://x", None),
            ("", None),
        ] {
            assert_eq!(scheme(Path::new(text)).as_deref(), expected, "{text}");
        }
        let error = refuse(Path::new("s3://user:secret@x"), "--out", "a run is written").unwrap_err().to_string();
        assert!(error.contains("s3:") && !error.contains("secret"), "{error}");
    }
}
