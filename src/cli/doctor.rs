//! `pipeline doctor`.

use anyhow::Result;
use selfrepair_core::plain::visible;
use selfrepair_core::progress;
use selfrepair_engine::library::describe;
use selfrepair_model::provision::{assets, library, python};

/// Show what is installed on this machine: Python, ONNX Runtime and its providers, cached packages
///
/// Nothing is downloaded.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  pipeline doctor")]
pub struct Args {}

pub fn run(_: Args) -> Result<()> {
    super::say(&doctor()?)
}

/// What was found, where, and in which version.
fn doctor() -> Result<String> {
    let mut shown = Vec::new();
    let mut row = |name: &str, text: String| shown.push(format!("{name:<16}{}", visible(&text)));
    row("pipeline", format!("{} ({}-{})", env!("CARGO_PKG_VERSION"), std::env::consts::OS, std::env::consts::ARCH));
    row("cores", std::thread::available_parallelism().map_or("unknown".into(), |n| n.to_string()));
    match python::interpreter() {
        Ok(path) => row("python", path.display().to_string()),
        Err(e) => row("python", format!("{e:#}")),
    }
    match python::pip_version() {
        Ok(version) => row("pip", version),
        Err(e) => row("pip", format!("{e:#}")),
    }
    row("cache", assets::cache_dir()?.display().to_string());
    match library::find_library() {
        Ok(Some(found)) => {
            row("onnxruntime", format!("{} ({})", found.path.display(), found.origin));
            match describe(&found.path) {
                Ok((version, providers)) => {
                    row("", format!("version {version}"));
                    row("", format!("execution providers: {}", providers.join(", ")));
                }
                Err(e) => row("", format!("cannot be used: {e:#}")),
            }
        }
        Ok(None) => row("onnxruntime", "not on this machine; the first run downloads it".into()),
        Err(e) => row("onnxruntime", format!("{e:#}")),
    }
    for asset in assets::assets()?.iter().filter(|a| a.kind != assets::AssetKind::Library) {
        let text = match asset.find()? {
            Some(path) => {
                let size = std::fs::metadata(&path).map_or(0, |m| m.len());
                format!("{} {}: {} ({})", asset.package, asset.version, path.display(), progress::bytes(size))
            }
            None => {
                format!("{} {}: not on this machine; a run that names it downloads it", asset.package, asset.version)
            }
        };
        row(&format!("package:{}", asset.name), text);
    }
    Ok(shown.join("\n"))
}
