//! The user's own Python: the folders of its packages, and `pip download`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// Where Python runs: only the system's owner can put a file here for it to find.
const SAFE_FOLDER: &str = "/";

/// A start of Python that runs nothing from the working folder: isolated (`-I`: no `PYTHONPATH`, no folder of the user's
/// or of a script), and elsewhere, so that no relative name in `PATH` or in a setting of pip leads back.
fn isolated(python: &Path) -> Command {
    let mut command = Command::new(python);
    // It leaves no compiled modules beside those that it reads (`-B`). The variables are for the Pythons that pip starts.
    command.args(["-I", "-B"]).env("PYTHONSAFEPATH", "1").env("PYTHONDONTWRITEBYTECODE", "1");
    command.env_remove("PYTHONPATH").current_dir(SAFE_FOLDER);
    command.stdin(Stdio::null());
    command
}

/// The Python to use: `PIPELINE_PYTHON`, else the first of `python3`, `python` that starts.
pub fn interpreter() -> Result<PathBuf> {
    let named = std::env::var_os("PIPELINE_PYTHON").map(PathBuf::from);
    let candidates = match &named {
        // A name alone is looked for in PATH; a path is one from here.
        Some(path) if path.components().count() > 1 => vec![std::path::absolute(path)?],
        Some(path) => vec![path.clone()],
        None => vec![PathBuf::from("python3"), PathBuf::from("python")],
    };
    let starts = |p: &PathBuf| {
        let status = isolated(p).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
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

/// The folders on Python's search path; empty without Python. Those that are relative in `PYTHONPATH`, the working folder
/// among them, are left out.
pub fn search_paths() -> &'static [PathBuf] {
    static PATHS: OnceLock<Vec<PathBuf>> = OnceLock::new();
    PATHS.get_or_init(|| {
        let ask = || -> Result<Vec<PathBuf>> {
            let output = isolated(&interpreter()?).args(["-c", SEARCH_PATH]).output()?;
            let named = std::env::var_os("PYTHONPATH").unwrap_or_default();
            let of_python = String::from_utf8_lossy(&output.stdout).lines().map(PathBuf::from).collect::<Vec<_>>();
            Ok(std::env::split_paths(&named).chain(of_python).filter(|path| path.is_absolute()).collect())
        };
        ask().unwrap_or_default()
    })
}

/// An isolated Python leaves out the folder for packages of one user, which is looked into all the same (but not by a
/// virtual environment).
const SEARCH_PATH: &str = "import site, sys
own = [site.getusersitepackages()] if sys.prefix == sys.base_prefix else []
print('\\n'.join(own + sys.path))";

/// Version of pip as it says it, for `doctor`.
pub fn pip_version() -> Result<String> {
    let python = interpreter()?;
    let output = isolated(&python).args(["-m", "pip", "--version"]).output()?;
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
    let folder = std::path::absolute(folder)?;
    let mut command = isolated(&python);
    command.args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]);
    if let Some(wheel) = wheel {
        command.args(["--implementation", "cp", "--python-version", &wheel.python]);
        command.args(["--abi", &wheel.abi, "--platform", &wheel.platform]);
    }
    command.arg("--dest").arg(folder).arg(requirement);
    // pip writes its bar to standard output; this program keeps that for results.
    command.stdout(std::io::stderr());
    let status = command.status().with_context(|| format!("cannot start {}", python.display()))?;
    ensure!(
        status.success(),
        "`pip download {requirement}` failed ({status}); is there a network, and does the index have this package?"
    );
    Ok(())
}
