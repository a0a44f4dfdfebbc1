//! Tells the program which commit it is built from.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // A source archive inside another repository has no commit of its own.
    let is_top = Path::new(".git").exists();
    let commit = is_top.then(|| git(&["rev-parse", "HEAD"])).flatten();
    println!("cargo:rustc-env=PIPELINE_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
    // Git appends a line to this file with every commit and checkout.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|log| is_top && Path::new(log).exists()) {
        println!("cargo:rerun-if-changed={log}");
    }
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_string()).filter(|text| !text.is_empty())
}
