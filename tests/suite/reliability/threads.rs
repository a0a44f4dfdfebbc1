//! Another number of threads or batch size gives the same values to 1e-5, and the same top tokens except for ties.

use arrow::array::RecordBatch;

use super::*;

const TOLERANCE: f64 = 1e-5;

fn close(a: f64, b: f64) -> bool {
    (a.is_nan() && b.is_nan()) || (a - b).abs() <= TOLERANCE * a.abs().max(1.0)
}

/// Every column of a table whose rows have the same keys in the same order.
fn assert_close(table: &str, a: &RecordBatch, b: &RecordBatch, ranked_by: Option<&str>) {
    assert_eq!(a.num_rows(), b.num_rows(), "{table}");
    let ranks = ranked_by.map(|column| numbers(a, column));
    // A row whose neighbour has the same value, to rounding, may have changed places with it.
    let tied = |i: usize| {
        ranks.as_ref().is_some_and(|v| {
            let same = |j: usize| v.get(j).is_some_and(|n| close(n.abs(), v[i].abs()));
            same(i + 1) || (i > 0 && same(i - 1))
        })
    };
    for field in a.schema().fields() {
        let name = field.name();
        if *field.data_type() == arrow::datatypes::DataType::Utf8 {
            let (x, y) = (texts(a, name), texts(b, name));
            assert!((0..x.len()).all(|i| x[i] == y[i] || tied(i)), "{table}.{name}");
            continue;
        }
        let (x, y) = (numbers(a, name), numbers(b, name));
        for i in 0..x.len() {
            assert!(close(x[i], y[i]) || tied(i), "{table}.{name}, row {i}: {} against {}", x[i], y[i]);
        }
    }
}

#[test]
fn threads_and_batches_change_nothing_but_rounding() {
    let one = tempfile::tempdir().unwrap();
    succeeded(everything("ablate", one.path()).args(["--set", "runtime.threads=1"]).output().unwrap());
    let others: &[&[&str]] = &[
        &["runtime.threads=2", "runtime.batch=8"],
        &["runtime.threads=1", "runtime.batch=5000"],
        &["runtime.threads=5", "runtime.batch=37"],
        &["runtime.threads=3", "runtime.batch=64"],
    ];
    for settings in &others[..cases(2, 4)] {
        let other = tempfile::tempdir().unwrap();
        let mut command = everything("ablate", other.path());
        settings.iter().for_each(|s| {
            command.args(["--set", s]);
        });
        succeeded(command.output().unwrap());
        let tables: [(&str, Option<&str>); 10] = [
            ("ablations", None),
            ("top_tokens", Some("direct_effect")),
            ("component_repairs", Some("change")),
            ("neuron_repairs", Some("change")),
            ("neuron_totals", None),
            ("neuron_curves", None),
            ("repair_graph", None),
            ("self_additions", None),
            ("stream_additions", None),
            ("head_similarity", None),
        ];
        for (table, ranked_by) in tables {
            let of = |out: &std::path::Path| read(&out.join("tables").join(table));
            assert_close(table, &of(one.path()), &of(other.path()), ranked_by);
        }
    }
}

/// Sums are taken in one order however many queries run at a time.
#[test]
fn derived_tables_and_figures_are_the_same_bytes_on_one_core() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(everything("all", dir.path()).output().unwrap());
    let expected = contents(dir.path());
    for stage in ["analyze", "report"] {
        std::fs::remove_file(dir.path().join(format!("stages/{stage}.json"))).unwrap();
    }
    let all = everything("all", dir.path());
    match Command::new("taskset").args(["-c", "0"]).arg(all.get_program()).args(all.get_args()).output() {
        Ok(output) => {
            succeeded(output);
            assert_same(dir.path(), &expected, "one core");
        }
        Err(e) => println!("taskset is not here ({e}); not tested"),
    }
}
