//! `runtime.precision`: the rounding error is measured, tolerated by the checks, and reported.

use std::fs;

use crate::support::*;

const COLUMNS: [&str; 13] = [
    "logit_change",
    "direct_effect",
    "ablated_direct_effect",
    "self_repair",
    "repair_attention",
    "repair_mlp",
    "repair_norm",
    "repair_write_norm",
    "repair_write_norm_own",
    "repair_by_erasers",
    "norm_scale",
    "ablated_norm_scale",
    "ablated_residual_norm",
];

/// The table says what a float32 run of its own says, and every check passes with everything measured.
#[test]
fn the_error_of_a_lower_precision_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let run = |precision: &str| {
        let out = dir.path().join(precision);
        let set = format!("runtime.precision={precision}");
        // Not `mean`: the means of the whole corpus are rounded, too, and the same in what is compared.
        let settings = [&*set, "neurons.layers=all", "ablation.kinds=[\"resample\", \"zero\"]"];
        let said = run_tiny("all", &out, &[&settings, &EVERYTHING[..]].concat());
        let warned = text(&said.stderr).contains(&format!("projections were computed in {precision}"));
        assert_eq!(warned, precision != "fp32", "{}", text(&said.stderr));
        succeeded(said);
        out
    };
    let exact = run("fp32");
    assert!(!exact.join("tables/rounding/rounding.parquet").exists());
    let exact = read(&exact.join("tables/ablations/00000.parquet"));
    let mut errors = Vec::new();
    for precision in ["fp16", "bf16"] {
        let out = run(precision);
        let (rounding, rounded) =
            (read(&out.join("tables/rounding")), read(&out.join("tables/ablations/00000.parquet")));
        assert_eq!(texts(&rounding, "measured"), COLUMNS);
        assert!(texts(&rounding, "precision").iter().all(|p| p == precision));
        assert!(numbers(&rounding, "rows").iter().all(|&rows| rows == exact.num_rows() as f64));
        let found = |name| numbers(&rounding, name);
        for (i, column) in COLUMNS.iter().enumerate() {
            let (a, b) = (numbers(&exact, column), numbers(&rounded, column));
            let differences: Vec<f64> = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).collect();
            let mean_square = |v: &[f64]| (v.iter().map(|x| x * x).sum::<f64>() / v.len() as f64).sqrt();
            let largest = differences.iter().copied().fold(0.0, f64::max);
            let close = |found: f64, expected: f64| {
                assert!((found - expected).abs() <= 1e-5 * expected.max(1.0), "{column}: {found} is not {expected}");
            };
            close(found("root_mean_square")[i], mean_square(&a));
            close(found("root_mean_square_error")[i], mean_square(&differences));
            close(found("largest_error")[i], largest);
        }
        let (error, own) = (found("root_mean_square_error")[3], found("root_mean_square")[3]);
        assert!(error > 0.0 && error < 0.1 * own, "{precision}: {error} of {own}");
        errors.push(error);
    }
    // Seven bits of fraction against ten.
    assert!(errors[1] > 3.0 * errors[0], "{errors:?}");
}

#[test]
fn another_precision_measures_again_and_exports_nothing() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("ablate", dir.path(), &["ablation.kinds=zero"]));
    let mut command = pipeline();
    command.args(["run", "ablate", "--dry-run", "--precision", "bf16", "--out"]).arg(dir.path());
    for setting in TINY_SETTINGS.iter().chain(&["ablation.kinds=zero"]) {
        command.args(["--set", setting]);
    }
    let said = succeeded(command.output().unwrap());
    let line = |stage: &str| said.lines().find(|l| l.trim_start().starts_with(stage)).unwrap_or_default().to_string();
    for stage in ["corpus", "export"] {
        assert!(line(stage).contains("up to date"), "{said}");
    }
    for stage in ["trace", "ablate"] {
        assert!(line(stage).contains("runtime.precision"), "{said}");
    }
}

#[test]
fn precisions_that_cannot_be_had_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let error = failed(run_tiny("ablate", dir.path(), &["runtime.precision=tf32"]));
    assert!(error.contains("runtime.precision = \"tf32\"") && error.contains("cuda"), "{error}");
    let error = failed(run_tiny("ablate", dir.path(), &["runtime.precision=fp8"]));
    for words in ["fp8", "fp32", "tf32", "bf16", "fp16"] {
        assert!(error.contains(words), "`{words}` is not in: {error}");
    }
}

/// Neurons above 65504 are numbers in float32 and bfloat16, and infinite in fp16.
#[test]
fn an_overflow_in_fp16_stops_the_run_and_names_where() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("model");
    fs::create_dir(&folder).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(std::path::Path::new(TINY).join(name), folder.join(name)).unwrap();
    }
    let path = folder.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let mut scale = |name: &str, by: f32| {
        let at = |i: usize| json[name]["data_offsets"][i].as_u64().unwrap() as usize + 8 + header;
        for number in bytes[at(0)..at(1)].chunks_exact_mut(4) {
            let value = f32::from_le_bytes((&*number).try_into().unwrap());
            number.copy_from_slice(&(by * value).to_le_bytes());
        }
    };
    // The same model but for what its neurons are measured in.
    scale("model.layers.1.mlp.up_proj.weight", 1e6);
    scale("model.layers.1.mlp.down_proj.weight", 1e-6);
    fs::write(&path, bytes).unwrap();
    let source = format!("model.source={}", folder.display());
    for precision in ["fp32", "bf16"] {
        let set = format!("runtime.precision={precision}");
        succeeded(run_tiny("ablate", &dir.path().join(precision), &[&source, &set, "ablation.kinds=zero"]));
    }
    let out = dir.path().join("fp16");
    let error = failed(run_tiny("ablate", &out, &[&source, "runtime.precision=fp16", "ablation.kinds=zero"]));
    for words in ["prompt 0, position 0", "mlp of layer 1", "overflow", "fp16"] {
        assert!(error.contains(words), "`{words}` is not in: {error}");
    }
    for table in ["clean", "direct_effects", "ablations"] {
        assert!(files(&out.join("tables").join(table)).is_empty(), "{table}");
    }
}
