//! A batch that does not fit into memory is made smaller, and the values stay.

use std::path::Path;
use std::process::Command;

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

fn assert_same_values(a: &Path, b: &Path) {
    let (a, b) = (read(&a.join("tables/ablations")), read(&b.join("tables/ablations")));
    for column in ["logit_change", "direct_effect", "self_repair", "repair_norm"] {
        for (x, y) in numbers(&a, column).iter().zip(numbers(&b, column)) {
            assert!((x - y).abs() <= 1e-5 * x.abs().max(1.0), "{column}: {x} against {y}");
        }
    }
}

#[test]
fn a_batch_is_fitted_to_the_memory_that_a_run_may_take() {
    let (free, tight) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    succeeded(run_tiny("ablate", free.path(), &LARGE_BATCH));
    let output = run_tiny("ablate", tight.path(), &[&LARGE_BATCH[..], &["runtime.memory=4000000"]].concat());
    let said = text(&output.stderr);
    succeeded(output);
    assert!(said.contains("rows instead of 100000000: more would not fit"), "{said}");
    assert_same_values(free.path(), tight.path());
}

/// The real thing: the system refuses an allocation in the middle of a graph (`ulimit -v`).
#[test]
fn an_allocation_that_fails_makes_the_batch_smaller() {
    let expected = tempfile::tempdir().unwrap();
    succeeded(run_tiny("ablate", expected.path(), &LARGE_BATCH[..4]));
    let run = |out: &Path, kilobytes: usize| {
        let mut command = pipeline();
        command.args(["run", "ablate", "--out"]).arg(out);
        // Told that there is plenty, so that only the refusal itself can make the batch smaller.
        let told = ["runtime.memory=1000000000000000"];
        TINY_SETTINGS.iter().chain(&LARGE_BATCH).chain(&told).for_each(|s| {
            command.args(["--set", s]);
        });
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words: Vec<String> = words.map(|w| format!("'{}'", w.to_str().unwrap())).collect();
        // One heap for all threads: with one each, mere reservations fill the address space.
        let script = format!("export MALLOC_ARENA_MAX=1; ulimit -v {kilobytes}; exec {}", words.join(" "));
        Command::new("sh").args(["-c", &script]).output().unwrap()
    };
    // How much address space the program itself takes differs between machines; from too little to enough.
    let mut shrunk = 0;
    for megabytes in (300..1500).step_by(cases(20, 5)) {
        let out = tempfile::tempdir().unwrap();
        let output = run(out.path(), megabytes * 1024);
        let said = text(&output.stderr);
        if !output.status.success() {
            continue;
        }
        assert_same_values(expected.path(), out.path());
        match said.contains("none left for batches of") {
            true => shrunk += 1,
            // Twice as much as the program takes is enough for everything.
            false if megabytes > 1000 => break,
            false => {}
        }
        if shrunk >= cases(1, 20) {
            break;
        }
    }
    println!("limits at which the batch shrank and the run went on: {shrunk}");
    assert!(shrunk > 0, "at no limit did the batch shrink");
}
