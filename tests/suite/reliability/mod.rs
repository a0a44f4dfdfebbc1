//! No fault of a machine or a file loses a result or gives a wrong one.
//!
//! A quick version of every test always runs. `PIPELINE_LONG=1 cargo test --release reliability -- --nocapture` runs
//! many more cases and prints how many.

mod faults;
mod foreign;
mod fuzz;
mod hostile;
mod interruptions;
mod long_documents;
mod memory;
mod mutation;
mod numbers;
mod odd_values;
mod older_runs;
mod piece_faults;
mod pieces;
mod places;
mod secrets;
mod shards;
mod threads;
mod tokenizers;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::SystemTime;

use crate::support::*;

/// So many cases, or many more in the long suite.
fn cases(quick: usize, long: usize) -> usize {
    if std::env::var_os("PIPELINE_LONG").is_some() { long } else { quick }
}

/// Everything that can be measured, on enough prompts for five shards of `trace` and three of `ablate`.
const EVERYTHING: [&str; 13] = [
    "model.source=tests/fixtures/tiny-llama",
    "corpus.source=tests/fixtures/corpus.txt",
    "corpus.tokens=1120",
    "corpus.prompt_len=8",
    "trace.save=[\"residual_final\"]",
    "ablation.kinds=[\"resample\", \"mean\"]",
    "ablation.heads=[\"L0H1\", \"L2H2\"]",
    "ablation.mlps=[\"L1\"]",
    "ablation.blocks=[\"L0\"]",
    "ablation.hold=[\"erasers\"]",
    "ablation.distribution=true",
    "neurons.layers=[\"L1-2\"]",
    // Enough that the heads have top tokens among them.
    "iterative.prompts=24",
];

/// `pipeline run STAGE` with [`EVERYTHING`], to be spawned.
fn everything(stage: &str, out: &Path) -> Command {
    let mut command = pipeline();
    command.args(["run", stage, "--out"]).arg(out);
    EVERYTHING.iter().for_each(|s| {
        command.args(["--set", s]);
    });
    command
}

/// A command as a shell takes it.
fn in_shell(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|w| format!("'{}'", w.to_str().unwrap())).collect::<Vec<_>>().join(" ")
}

/// The tiny model copied, so that it can be corrupted.
fn copy_of_tiny(dir: &Path) -> PathBuf {
    let folder = dir.join("model");
    std::fs::create_dir(&folder).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(Path::new(TINY).join(name), folder.join(name)).unwrap();
    }
    folder
}

/// Name, shape, and where the data lies, of every tensor of a safetensors file.
fn tensors(bytes: &[u8]) -> Vec<(String, Vec<usize>, usize)> {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let numbers = |v: &serde_json::Value| -> Vec<usize> {
        v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect()
    };
    let tensors = header.iter().filter(|(name, _)| *name != "__metadata__");
    tensors.map(|(name, t)| (name.clone(), numbers(&t["shape"]), 8 + length + numbers(&t["data_offsets"])[0])).collect()
}

/// Name and bytes of every file of a run but what holds times: manifests and the lock.
fn contents(out: &Path) -> Vec<(String, Vec<u8>)> {
    let folders = ["tables", "model", "work", "activations", "figures", "report"];
    let paths = folders.iter().flat_map(|folder| files(&out.join(folder)));
    paths.map(|p| (p.strip_prefix(out).unwrap().display().to_string(), std::fs::read(&p).unwrap())).collect()
}

#[track_caller]
fn assert_same(out: &Path, expected: &[(String, Vec<u8>)], when: &str) {
    let found = contents(out);
    let names = |files: &[(String, Vec<u8>)]| files.iter().map(|f| f.0.clone()).collect::<Vec<_>>();
    assert_eq!(names(&found), names(expected), "{when}");
    for ((name, a), (_, b)) in found.iter().zip(expected) {
        assert!(a == b, "{name} differs after {when}");
    }
}

/// Numbers that look random and are the same every time, but for the long suite's, which say how to repeat them.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let given = std::env::var("PIPELINE_SEED").ok().and_then(|s| s.parse().ok());
        let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = given.unwrap_or_else(|| if cases(0, 1) == 1 { now() } else { 1 });
        println!("PIPELINE_SEED={seed}");
        Self(seed)
    }

    /// From 0 to `n` − 1 (splitmix64).
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }
}
