//! The binary from text to report on a tiny model, and the promises of a run.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use arrow::array::{Array, AsArray};
use arrow::ipc::reader::FileReader;

use crate::support::*;

#[test]
fn run_all_ends_with_tables_a_summary_and_a_report() {
    let dir = tempfile::tempdir().unwrap();
    let summary = succeeded(run_tiny("all", dir.path(), &[]));
    for words in ["tiny-llama: 3 layers of 4 heads; 180 tokens of 12 prompts", "zero ablation", "self-repair"] {
        assert!(summary.contains(words), "{summary}");
    }
    let heads = read(&dir.path().join("tables/head_summary"));
    assert_eq!(heads.num_rows(), 3 * 12 * 2, "ablations × heads × subsets");
    let page = std::fs::read_to_string(dir.path().join("report/index.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("head_summary") && !page.contains("src="), "self-contained");
    for figure in ["repair_by_layer_resample.svg", "repair_by_layer_resample.png", "norm_scale.svg"] {
        assert!(dir.path().join("figures").join(figure).is_file(), "{figure}");
    }
    assert_eq!(read(&dir.path().join("tables/model")).num_rows(), 1);

    let sql = |arguments: &[&str]| {
        succeeded(pipeline().arg("sql").arg("--out").arg(dir.path()).args(arguments).output().unwrap())
    };
    let answer = sql(&["select layer, avg(self_repair) from ablations group by layer order by layer"]);
    assert_eq!(answer.lines().filter(|l| l.starts_with("| ")).count(), 4, "{answer}");
    assert_eq!(sql(&["--format", "csv", "select count(*) as n from tokens"]), "n\n192\n");
    assert_eq!(sql(&["--format", "json", "select 1 as one"]), "{\"one\":1}\n");
    assert!(sql(&["show tables"]).contains("repair_quantiles"));
}

/// The summaries against sums done here, row by row.
#[test]
fn head_summary_is_what_its_header_says() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("analyze", dir.path(), &["analysis.top_fraction=0.1", "ablation.kinds=[\"zero\"]"]));
    let rows = read(&dir.path().join("tables/ablations"));
    let summary = read(&dir.path().join("tables/head_summary"));
    let value = |batch: &arrow::array::RecordBatch, name: &str| numbers(batch, name);
    let (layer, head) = (value(&rows, "layer"), value(&rows, "head"));
    let (de, repair) = (value(&rows, "direct_effect"), value(&rows, "self_repair"));
    let (prompt, position) = (value(&rows, "prompt"), value(&rows, "position"));
    let subset = texts(&summary, "subset");
    for (i, subset) in subset.iter().enumerate() {
        let (l, h) = (value(&summary, "layer")[i], value(&summary, "head")[i]);
        let mut mine: Vec<usize> = (0..layer.len()).filter(|&r| layer[r] == l && head[r] == h).collect();
        assert_eq!(mine.len(), 180);
        if subset == "top" {
            mine.sort_by(|&a, &b| {
                de[b].total_cmp(&de[a]).then(prompt[a].total_cmp(&prompt[b])).then(position[a].total_cmp(&position[b]))
            });
            mine.truncate(18);
        }
        let n = mine.len() as f64;
        let mean = |f: &dyn Fn(usize) -> f64| mine.iter().map(|&r| f(r)).sum::<f64>() / n;
        let close = |column: &str, expected: f64| {
            let got = value(&summary, column)[i];
            assert!((got - expected).abs() <= 2e-5 * expected.abs().max(1.0), "L{l}H{h} {column}: {got}, {expected}");
        };
        close("tokens", n);
        close("direct_effect", mean(&|r| de[r]));
        close("self_repair", mean(&|r| repair[r]));
        close("fraction_clipped", mean(&|r| (repair[r] / de[r]).clamp(0.0, 1.0)));
        close("fraction_of_means", mean(&|r| repair[r]) / mean(&|r| de[r]));
        // Standard error with a prompt's tokens as one observation.
        let m = mean(&|r| repair[r]);
        let mut residuals = std::collections::BTreeMap::<u64, f64>::new();
        mine.iter().for_each(|&r| *residuals.entry(prompt[r] as u64).or_default() += repair[r] - m);
        let clusters = residuals.len() as f64;
        let squares: f64 = residuals.values().map(|v| v * v).sum();
        close("self_repair_error", (squares * clusters / (clusters - 1.0)).sqrt() / n);
    }
}

/// The shares against counts done here.
#[test]
fn repair_outcomes_count_tokens_by_what_became_of_their_loss() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("analyze", dir.path(), &["ablation.kinds=[\"mean\"]"]));
    let rows = read(&dir.path().join("tables/ablations"));
    let column = |name: &str| numbers(&rows, name);
    let (layer, head, repair) = (column("layer"), column("head"), column("self_repair"));
    let (before, after) = (column("direct_effect"), column("ablated_direct_effect"));
    let outcomes = read(&dir.path().join("tables/repair_outcomes"));
    assert_eq!(outcomes.num_rows(), 12);
    for i in 0..12 {
        let value = |name: &str| numbers(&outcomes, name)[i];
        let mine = (0..layer.len()).filter(|&r| layer[r] == value("layer") && head[r] == value("head"));
        let ratios: Vec<f64> =
            mine.map(|r| (repair[r], before[r] - after[r])).filter(|r| r.1 > 0.05).map(|(s, d)| s / d).collect();
        let share = |f: &dyn Fn(f64) -> bool| ratios.iter().filter(|&&r| f(r)).count() as f64 / ratios.len() as f64;
        // A drop within rounding of 0.05 may fall on either side.
        assert!((value("tokens") - ratios.len() as f64).abs() <= 1.0);
        for (name, expected) in [
            ("not_repaired", share(&|r| r <= 0.0)),
            ("partly_repaired", share(&|r| r > 0.0 && r <= 1.0)),
            ("over_repaired", share(&|r| r > 1.0)),
        ] {
            assert!((value(name) - expected).abs() < 0.03, "{name}: {} against {expected}", value(name));
        }
        assert!((value("not_repaired") + value("partly_repaired") + value("over_repaired") - 1.0).abs() < 1e-6);
    }
}

fn table_bytes(out: &Path) -> Vec<(String, Vec<u8>)> {
    let tables = out.join("tables");
    let relative = |p: &Path| p.strip_prefix(&tables).unwrap().display().to_string();
    files(&tables).iter().map(|p| (relative(p), std::fs::read(p).unwrap())).collect()
}

#[test]
fn the_same_configuration_gives_the_same_bytes_and_a_killed_run_resumes_to_them() {
    let undisturbed = tempfile::tempdir().unwrap();
    succeeded(run_tiny("analyze", undisturbed.path(), &[]));
    let expected = table_bytes(undisturbed.path());

    let killed = tempfile::tempdir().unwrap();
    for delay in [20, 60, 120, 200, 300, 450] {
        let mut command = pipeline();
        command.args(["run", "analyze", "--out"]).arg(killed.path());
        TINY_SETTINGS.iter().for_each(|s| {
            command.args(["--set", s]);
        });
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    succeeded(run_tiny("analyze", killed.path(), &[]));
    let names = |tables: &[(String, Vec<u8>)]| tables.iter().map(|t| t.0.clone()).collect::<Vec<_>>();
    assert_eq!(names(&table_bytes(killed.path())), names(&expected));
    for ((name, a), (_, b)) in table_bytes(killed.path()).iter().zip(&expected) {
        assert!(a == b, "{name} differs");
    }
}

/// More prompts than one shard holds: three of `trace`, two of `ablate`.
const LARGE: [&str; 2] = ["corpus.tokens=1120", "ablation.heads=[\"L0H1\", \"L2\"]"];

#[test]
fn a_run_of_several_shards_resumes_at_the_one_that_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("analyze", dir.path(), &LARGE));
    let expected = table_bytes(dir.path());
    let names = |prefix: &str| expected.iter().filter(|t| t.0.starts_with(prefix)).count();
    assert_eq!((names("clean/"), names("direct_effects/"), names("ablations/")), (3, 3, 2));
    let rows = read(&dir.path().join("tables/ablations"));
    assert_eq!(rows.num_rows(), 3 * 5 * 70 * 15, "ablations × heads × prompts × positions");

    for (stage, lost) in [("ablate", "ablations/00001-00001.parquet"), ("trace", "clean/00001.parquet")] {
        std::fs::remove_file(dir.path().join("tables").join(lost)).unwrap();
        let kept = files(dir.path().join("tables").join(lost).parent().unwrap());
        let before: Vec<_> = kept.iter().map(|p| p.metadata().unwrap().modified().unwrap()).collect();
        // The manifest names a file that is gone, so the stage runs again and finds the others whole.
        succeeded(run_tiny("analyze", dir.path(), &LARGE));
        let after: Vec<_> = kept.iter().map(|p| p.metadata().unwrap().modified().unwrap()).collect();
        assert_eq!(before, after, "{stage} wrote whole shards again");
        for ((name, a), (_, b)) in table_bytes(dir.path()).iter().zip(&expected) {
            assert!(a == b, "{name} differs after {stage} resumed");
        }
    }
}

/// The mean z behind the mean ablation, over every prompt and position, against the saved activations; and through it
/// one direct effect, so that head and layer order are those of the tables.
#[test]
fn saved_z_adds_up_to_the_mean_and_gives_the_direct_effects() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("ablate", dir.path(), &[&LARGE[..], &["trace.save=[\"head_z\"]"]].concat()));
    let width = 3 * 4 * 12;
    let (mut saved, mut summed) = (vec![0f64; width], vec![0f64; width]);
    for path in files(&dir.path().join("activations/head_z")) {
        for batch in FileReader::try_new(std::fs::File::open(path).unwrap(), None).unwrap().map(Result::unwrap) {
            let list = batch.column_by_name("head_z").unwrap().as_fixed_size_list();
            let values = list.values().as_primitive::<arrow::datatypes::Float32Type>().values();
            for row in values.chunks_exact(width) {
                saved.iter_mut().zip(row).for_each(|(s, &v)| *s += f64::from(v));
            }
        }
    }
    let sums = files(&dir.path().join("work")).into_iter().filter(|p| p.extension().is_some_and(|e| e == "f64"));
    let sums: Vec<_> = sums.collect();
    assert_eq!(sums.len(), 3);
    for path in sums {
        for (s, bytes) in summed.iter_mut().zip(std::fs::read(path).unwrap().chunks_exact(8)) {
            *s += f64::from_le_bytes(bytes.try_into().unwrap());
        }
    }
    for (i, (a, b)) in saved.iter().zip(&summed).enumerate() {
        assert!((a - b).abs() <= 1e-9 * a.abs().max(1.0), "z {i}: {a} against {b}");
    }
    assert!(saved.iter().any(|s| s.abs() > 1.0));
}

#[test]
fn other_batches_and_threads_give_the_same_values() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    succeeded(run_tiny("ablate", a.path(), &[]));
    succeeded(run_tiny("ablate", b.path(), &["runtime.batch=16", "runtime.threads=1"]));
    let (a, b) = (read(&a.path().join("tables/ablations")), read(&b.path().join("tables/ablations")));
    for column in ["self_repair", "logit_change", "repair_norm", "repair_by_erasers"] {
        for (x, y) in numbers(&a, column).iter().zip(numbers(&b, column)) {
            assert!((x - y).abs() <= 1e-5 * x.abs().max(1.0), "{column}: {x} against {y}");
        }
    }
}

#[test]
fn only_what_changed_runs_again() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("analyze", dir.path(), &[]));
    let lines = |more: &[&str]| {
        let output = run_tiny("analyze", dir.path(), more);
        assert!(output.status.success());
        let stderr = text(&output.stderr);
        let current = stderr.lines().filter_map(|l| l.trim().strip_suffix(" up to date"));
        current.map(str::to_string).collect::<Vec<_>>()
    };
    assert_eq!(lines(&[]), ["corpus", "export", "trace", "ablate", "analyze"]);
    assert_eq!(lines(&["analysis.thresholds=[0.5]"]), ["corpus", "export", "trace", "ablate"]);
    assert_eq!(lines(&["analysis.thresholds=[0.5]", "runtime.batch=32"]).len(), 5);
    // Less than what is there needs nothing, and a layer of neurons more is added.
    assert_eq!(lines(&["analysis.thresholds=[0.5]", "ablation.kinds=zero", "ablation.heads=[\"L1H0\"]"]).len(), 5);
    assert_eq!(lines(&["analysis.thresholds=[0.5]", "neurons.layers=[\"L1\"]"]), ["corpus", "export", "trace"]);
}

#[test]
fn raw_activations_are_saved_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let save = "trace.save=[\"head_z\", \"mlp_post\", \"residual_final\"]";
    succeeded(run_tiny("trace", dir.path(), &[save]));
    for (name, width) in [("head_z", 3 * 4 * 12), ("mlp_post", 3 * 56), ("residual_final", 32)] {
        let path = dir.path().join("activations").join(name).join("00000.arrow");
        let reader = FileReader::try_new(std::fs::File::open(path).unwrap(), None).unwrap();
        let batches: Vec<_> = reader.map(Result::unwrap).collect();
        assert_eq!(batches.iter().map(|b| b.num_rows()).sum::<usize>(), 192, "one row a prompt position");
        let list = batches[0].column_by_name(name).unwrap().as_fixed_size_list();
        assert_eq!((list.value_length() as usize, list.null_count()), (width, 0));
    }
    // The final stream's norm is a column of `clean`, computed another way.
    let path = dir.path().join("activations/residual_final/00000.arrow");
    let batch = FileReader::try_new(std::fs::File::open(path).unwrap(), None).unwrap().next().unwrap().unwrap();
    let list = batch.column_by_name("residual_final").unwrap().as_fixed_size_list();
    let row = list.value(1);
    let norm = row.as_primitive::<arrow::datatypes::Float32Type>().values().iter().map(|v| v * v).sum::<f32>().sqrt();
    let clean = read(&dir.path().join("tables/clean"));
    assert!((f64::from(norm) - numbers(&clean, "residual_norm")[1]).abs() < 1e-3);
}

#[test]
fn tables_describe_themselves() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("analyze", dir.path(), &[]));
    for (table, column, unit) in [
        ("ablations", "self_repair", "logits"),
        ("clean", "log_prob", "nats"),
        ("head_summary", "self_repair", "logits"),
    ] {
        let path = &files(&dir.path().join("tables").join(table))[0];
        let file = std::fs::File::open(path).unwrap();
        let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        let field = reader.schema().field_with_name(column).unwrap().clone();
        assert_eq!(field.metadata()["unit"], unit, "{table}.{column}");
        assert!(!field.metadata()["description"].is_empty());
        let pairs = reader.metadata().file_metadata().key_value_metadata().unwrap();
        for key in ["pipeline.run_id", "pipeline.schema_version", "pipeline.measurement_version", "pipeline.commit"] {
            assert!(pairs.iter().any(|kv| kv.key == key && kv.value.is_some()), "{table}: {key}");
        }
    }
}
