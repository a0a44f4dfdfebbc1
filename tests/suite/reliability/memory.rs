//! A batch that does not fit into memory is made smaller, and values do not change.

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};

use super::*;

/// One prompt alone would do, all together do not.
const LARGE_BATCH: [&str; 6] = [
    "corpus.tokens=1088",
    "corpus.prompt_len=64",
    "ablation.kinds=[\"resample\"]",
    "ablation.resample.samples=16",
    "runtime.batch=100000000",
    "runtime.threads=2",
];

/// Partners' activations of all samples and prompts at once are what is large here; and the run believes that there is
/// memory for everything, until it is refused.
const MANY_PARTNERS: [&str; 7] = [
    "corpus.tokens=1984",
    "corpus.prompt_len=32",
    "ablation.kinds=[\"resample\"]",
    "ablation.heads=[\"L0H0\", \"L1H1\", \"L2H2\"]",
    "ablation.resample.samples=60",
    "runtime.threads=1",
    "runtime.memory=1000000000000",
];

/// Otherwise the allocator reserves a gigabyte of address space beforehand, more than the batches take.
const NO_RESERVE: (&str, &str) = ("MIMALLOC_ARENA_RESERVE", "0");

#[track_caller]
fn assert_same_values(a: &Path, b: &Path) {
    assert_near(a, b, 1e-5);
}

#[track_caller]
fn assert_near(a: &Path, b: &Path, tolerance: f64) {
    let (a, b) = (read(&a.join("tables/ablations")), read(&b.join("tables/ablations")));
    assert_eq!(a.num_rows(), b.num_rows());
    for column in ["logit_change", "direct_effect", "self_repair", "repair_norm"] {
        let (a, b) = (numbers(&a, column), numbers(&b, column));
        let largest = a.iter().fold(1f64, |m, x| m.max(x.abs()));
        for (x, y) in a.iter().zip(b) {
            assert!((x - y).abs() <= tolerance * largest, "{column}: {x} against {y}, largest {largest}");
        }
    }
}

#[test]
fn a_batch_is_fitted_to_the_memory_that_a_run_may_take() {
    let (free, tight) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    succeeded(run_tiny("ablate", free.path(), &LARGE_BATCH));
    let output = run_tiny("ablate", tight.path(), &[&LARGE_BATCH[..], &["runtime.memory=104000000"]].concat());
    let said = text(&output.stderr);
    succeeded(output);
    assert!(said.contains("rows instead of 100000000: larger ones do not fit"), "{said}");
    assert_same_values(free.path(), tight.path());
}

#[test]
fn memory_that_is_too_small_for_anything_is_said_before_the_run_starts() {
    let dir = tempfile::tempdir().unwrap();
    let error = failed(run_tiny("ablate", dir.path(), &["runtime.memory=80000000"]));
    for words in ["runtime.memory is only 80.0 MB", "takes at least 10", "MB of memory"] {
        assert!(error.contains(words), "`{words}` is not in: {error}");
    }
}

const REAL: [&str; 4] = [
    "corpus.tokens=1024",
    "corpus.prompt_len=64",
    "ablation.kinds=[\"zero\"]",
    "ablation.heads=[\"L0H0-1\", \"L28-29H0-3\"]",
];

/// The most memory that a run took, but for pages of files, and what it said.
fn most_memory(out: &Path, more: &[&str]) -> (u64, String) {
    let mut command = pipeline();
    command.args(["run", "analyze", "--out"]).arg(out);
    for setting in REAL.iter().chain(more) {
        command.args(["--set", setting]);
    }
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut child = command.stdout(Stdio::null()).stderr(log.reopen().unwrap()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let now = text.lines().find_map(|l| l.strip_prefix("RssAnon:")).unwrap_or("0");
        most = most.max(now.split_whitespace().next().unwrap().parse().unwrap());
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let said = fs::read_to_string(log.path()).unwrap();
    assert!(child.wait().unwrap().success(), "{said}");
    (1024 * most, said)
}

/// The first number of MB or GB before ` of memory`.
fn planned(said: &str) -> f64 {
    let line = said.lines().find(|line| line.contains(" of memory")).unwrap();
    let words: Vec<&str> = line.split(" of memory").next().unwrap().split_whitespace().collect();
    let unit = if words[words.len() - 1] == "GB" { 1e9 } else { 1e6 };
    words[words.len() - 2].parse::<f64>().unwrap() * unit
}

#[test]
fn layers_that_do_not_fit_into_memory_are_loaded_in_turn() {
    let (free, tight) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_, said) = most_memory(free.path(), &[]);
    assert!(!said.contains("layers at a time"), "{said}");
    let (took, said) = most_memory(tight.path(), &["runtime.memory=700000000"]);
    assert!(said.contains("of 30 layers at a time"), "{said}");
    // A change goes through thirty layers.
    assert_near(free.path(), tight.path(), 1e-4);
    let planned = planned(&said);
    println!("planned {planned:e}, took {took:e}");
    assert!((took as f64) < 1.15 * planned && took as f64 > 0.7 * planned, "{took} bytes of {planned}");
}

fn large(out: &Path, batch: usize) -> Command {
    let mut command = pipeline();
    command.args(["run", "ablate", "--out"]).arg(out);
    for setting in TINY_SETTINGS.iter().chain(&MANY_PARTNERS) {
        command.args(["--set", setting]);
    }
    command.args(["--set", &format!("runtime.batch={batch}")]);
    command.env(NO_RESERVE.0, NO_RESERVE.1);
    command
}

/// The most address space that a run took, in kilobytes.
fn most_address_space(mut command: Command) -> u64 {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let peak = text.lines().find_map(|l| l.strip_prefix("VmPeak:")).unwrap_or("0");
        most = most.max(peak.split_whitespace().next().unwrap().parse().unwrap());
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert!(child.wait().unwrap().success());
    most
}

fn with_address_space(kilobytes: u64, command: &Command) -> Output {
    let script = format!("ulimit -v {kilobytes}; exec {}", in_shell(command));
    Command::new("sh").args(["-c", &script]).env(NO_RESERVE.0, NO_RESERVE.1).output().unwrap()
}

/// Where the system refuses memory in the middle of a run, the batch shrinks if it was ONNX Runtime or a list that grows
/// with the batch that asked. Elsewhere the process ends, and the run goes on with more memory. Between less than small
/// batches take and what the large one takes, every limit must end in one of the two; and by halving the distance between
/// a limit that was too small and one that was large enough, one is found at which the batch shrinks.
#[test]
fn memory_refused_in_the_middle_costs_speed_or_a_resumable_run_and_no_value() {
    let (free, small) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let large_takes = most_address_space(large(free.path(), 100_000_000));
    let small_takes = most_address_space(large(small.path(), 64));
    println!("address space: {large_takes} kB with the large batch, {small_takes} kB with small ones");
    assert!(large_takes > small_takes + 50_000, "{large_takes} kB against {small_takes} kB");
    let (mut too_small, mut enough) = (small_takes * 3 / 4, large_takes);
    let (mut shrank, mut unharmed, mut ended) = (0, 0, 0);
    while enough - too_small > 1000 && shrank < cases(1, 8) {
        let limit = (too_small + enough) / 2;
        let dir = tempfile::tempdir().unwrap();
        let output = with_address_space(limit, &large(dir.path(), 100_000_000));
        let said = text(&output.stderr);
        assert!(!said.contains("panicked"), "{limit} kB: {said}");
        match output.status.success() {
            true => {
                enough = limit;
                *if said.contains("continuing with") { &mut shrank } else { &mut unharmed } += 1;
            }
            false => {
                ended += 1;
                too_small = limit;
                println!("{limit} kB: {:?} {}", output.status, said.lines().last().unwrap_or_default());
                let why = ["error: ", "memory allocation of", "bad_alloc"];
                assert!(why.iter().any(|w| said.contains(w)), "{limit} kB: {:?} {said}", output.status);
                succeeded(large(dir.path(), 64).output().unwrap());
            }
        }
        assert_same_values(free.path(), dir.path());
    }
    println!("limits on address space: batches shrank {shrank}, fitted {unharmed}, run ended and resumed {ended}");
    assert!(shrank > 0, "no limit made a batch smaller");
}
