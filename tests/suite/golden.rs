//! Measured numbers stay what they are until the measurement version is raised.
//!
//! `tests/fixtures/golden.json` holds, for every measured column of a run over the tiny model, how many values it has,
//! their sum and the sum of their absolute values. Parity with independent implementations is tested elsewhere; this is a
//! reminder.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::Field;
use selfrepair_core::provenance::MEASUREMENT_VERSION;
use selfrepair_core::tables::MEASURED;
use serde_json::{Value, json};

use crate::support::*;

const PINNED: &str = "tests/fixtures/golden.json";

/// By `table.column`: count, sum, sum of absolute values.
type Totals = BTreeMap<String, [f64; 3]>;

fn totals(out: &Path) -> Totals {
    let mut totals = Totals::new();
    for table in MEASURED {
        let rows = read(&out.join("tables").join(table.name));
        // A table that was not measured is there without rows.
        let is_number = |f: &&Arc<Field>| f.data_type().is_numeric() && rows.num_rows() > 0;
        for field in rows.schema().fields().iter().filter(is_number) {
            let values: Vec<f64> = numbers(&rows, field.name()).into_iter().filter(|v| !v.is_nan()).collect();
            let sums = [values.len() as f64, values.iter().sum(), values.iter().map(|v| v.abs()).sum()];
            totals.insert(format!("{}.{}", table.name, field.name()), sums);
        }
    }
    totals
}

#[test]
fn numbers_change_only_with_the_measurement_version() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("ablate", dir.path(), &[&EVERYTHING[..], &["ablation.distribution=true"]].concat()));
    let found = totals(dir.path());
    if std::env::var_os("PIPELINE_PIN_NUMBERS").is_some() {
        let pinned = json!({ "measurement_version": MEASUREMENT_VERSION, "columns": found });
        std::fs::write(PINNED, serde_json::to_string_pretty(&pinned).unwrap() + "\n").unwrap();
    }
    let pinned: Value = serde_json::from_str(&std::fs::read_to_string(PINNED).unwrap()).unwrap();
    let what_to_do = "If the change is meant: raise MEASUREMENT_VERSION in src/core/provenance.rs, say in CHANGELOG.md what \
                      changed, and write the new numbers with PIPELINE_PIN_NUMBERS=1 cargo test --release golden";
    assert_eq!(pinned["measurement_version"], MEASUREMENT_VERSION, "{what_to_do}");
    let columns: Totals = serde_json::from_value(pinned["columns"].clone()).unwrap();
    assert_eq!(Vec::from_iter(columns.keys()), Vec::from_iter(found.keys()), "{what_to_do}");
    for (column, before) in &columns {
        let now = found[column];
        let tolerance = 1e-5 * before[2].max(1.0);
        let same = before[0] == now[0] && before.iter().zip(&now).all(|(a, b)| (a - b).abs() <= tolerance);
        assert!(same, "{column} changed: {before:?} → {now:?} (count, sum, absolute sum). {what_to_do}");
    }
}
