//! The user's own Python: the folders of its packages, and `pip download`.

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use selfrepair_core::{interrupt, own_files, progress};
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

/// Downloads one wheel (`package==version`) into `folder`, in which nothing else lies. On a terminal, pip draws its bar;
/// elsewhere, lines say how far it is.
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
    // What is on its way lies there, too.
    let parts = folder.join("parts");
    fs::create_dir_all(&parts).with_context(|| format!("cannot create {}", parts.display()))?;
    command.env("TMPDIR", parts);
    command.arg("--dest").arg(&folder).arg(requirement);
    // pip writes its bar to standard output; this program keeps that for results.
    command.stdout(std::io::stderr());
    let pip = command.spawn().with_context(|| format!("cannot start {}", python.display()))?;
    let status = Download { pip, folder: &folder, requirement }.wait()?;
    ensure!(
        status.success(),
        "`pip download {requirement}` failed ({status}); is there a network, and does the index have this package?"
    );
    Ok(())
}

/// A download by pip that is under way.
struct Download<'a> {
    pip: Child,
    folder: &'a Path,
    requirement: &'a str,
}

/// pip gives up on a server that is silent for so many of its timeouts (it tries again five times).
const TIMEOUTS: u64 = 12;

/// pip's own timeout, if `PIP_DEFAULT_TIMEOUT` does not say another.
const TIMEOUT: u64 = 15;

/// Bytes a second that are not waited for any more.
const SLOWEST: u64 = 1000;

/// The largest wheel.
const MOST_BYTES: u64 = 4 << 30;

const BETWEEN_LINES: Duration = Duration::from_secs(10);
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

impl Download<'_> {
    /// Waits for the end, unless pip gets nothing, next to nothing, or more than any wheel has.
    fn wait(mut self) -> Result<ExitStatus> {
        let named = std::env::var("PIP_DEFAULT_TIMEOUT").ok().and_then(|seconds| seconds.parse().ok());
        let patience = named.unwrap_or(TIMEOUT).clamp(1, 3600) * TIMEOUTS;
        let (mut since, mut before, mut told) = (Instant::now(), 0, Instant::now());
        loop {
            if let Some(status) = self.pip.try_wait().context("waiting for pip")? {
                return Ok(status);
            }
            let have = self.bytes();
            if since.elapsed() >= Duration::from_secs(patience) {
                if have.saturating_sub(before) < patience * SLOWEST {
                    return self.give_up(&format!("it received less than 1 kB per second for {patience} s"));
                }
                (since, before) = (Instant::now(), have);
            }
            if have > MOST_BYTES {
                return self.give_up(&format!("it received {}, more than a wheel has", progress::bytes(have)));
            }
            if let Err(interrupted) = interrupt::check() {
                self.give_up("interrupted").ok();
                return Err(interrupted);
            }
            if told.elapsed() >= BETWEEN_LINES && !std::io::stderr().is_terminal() {
                progress::line("get", &format!("{}: {} so far", self.requirement, progress::bytes(have)));
                told = Instant::now();
            }
            thread::sleep(BETWEEN_LOOKS);
        }
    }

    /// Bytes on the disk so far.
    fn bytes(&self) -> u64 {
        let files = own_files::walk(self.folder).unwrap_or_default();
        files.iter().filter_map(|(path, _)| path.symlink_metadata().ok()).map(|metadata| metadata.len()).sum()
    }

    fn give_up(&mut self, why: &str) -> Result<ExitStatus> {
        self.pip.kill().context("ending pip")?;
        self.pip.wait().context("waiting for pip")?;
        bail!("`pip download {}` was given up: {why}", self.requirement)
    }
}
