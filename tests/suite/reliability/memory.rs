//! A batch that does not fit into memory is made smaller, and the values stay.

use std::path::Path;

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
