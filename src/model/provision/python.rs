//! The user's own Python: where its packages lie, and `pip download`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// The Python to use: `PIPELINE_PYTHON`, else the first of `python3`, `python` that starts.
pub fn interpreter() -> Result<PathBuf> {
    let named = std::env::var_os("PIPELINE_PYTHON").map(PathBuf::from);
    let candidates = match &named {
        Some(path) => vec![path.clone()],
        None => vec![PathBuf::from("python3"), PathBuf::from("python")],
    };
    let starts = |p: &PathBuf| {
        let status = Command::new(p).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|s| s.success())
    };
    match candidates.into_iter().find(starts) {
        Some(path) => Ok(path),
        None => match named {
            Some(path) => bail!("PIPELINE_PYTHON = {} does not start", path.display()),
            None => {
                bail!("no Python found (tried python3 and python); install Python 3 with pip, or set PIPELINE_PYTHON")
            }
        },
    }
}

/// The folders on Python's search path; empty without Python.
pub fn search_paths() -> &'static [PathBuf] {
    static PATHS: OnceLock<Vec<PathBuf>> = OnceLock::new();
    PATHS.get_or_init(|| {
        let ask = || -> Result<Vec<PathBuf>> {
            let script = "import sys; print('\\n'.join(p for p in sys.path if p))";
            let output = Command::new(interpreter()?).args(["-c", script]).output()?;
            Ok(String::from_utf8_lossy(&output.stdout).lines().map(PathBuf::from).collect())
        };
        ask().unwrap_or_default()
    })
}

/// Version of pip as it says it, for `doctor`.
pub fn pip_version() -> Result<String> {
    let python = interpreter()?;
    let output = Command::new(&python).args(["-m", "pip", "--version"]).output()?;
    ensure!(output.status.success(), "{} has no pip; install it (python3 -m ensurepip)", python.display());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
}

/// Which wheel of a package to ask pip for, when it has several.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wheel {
    pub python: String,
    pub abi: String,
    pub platform: String,
}

/// Downloads one wheel (`package==version`) into `folder`. pip's own progress bar goes to standard error.
pub fn pip_download(requirement: &str, wheel: Option<&Wheel>, folder: &Path) -> Result<()> {
    let python = interpreter()?;
    pip_version()?;
    let mut command = Command::new(&python);
    command.args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]);
    if let Some(wheel) = wheel {
        command.args(["--implementation", "cp", "--python-version", &wheel.python]);
        command.args(["--abi", &wheel.abi, "--platform", &wheel.platform]);
    }
    command.arg("--dest").arg(folder).arg(requirement);
    // pip writes its bar to standard output; this program keeps that for results.
    command.stdin(Stdio::null()).stdout(std::io::stderr());
    let status = command.status().with_context(|| format!("cannot start {}", python.display()))?;
    ensure!(
        status.success(),
        "`pip download {requirement}` failed ({status}); is there a network, and does the index have this package?"
    );
    Ok(())
}
