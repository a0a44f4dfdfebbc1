//! Files that are lost, cut short or changed behind the program's back.

use std::fs;
use std::path::Path;

use super::*;

#[derive(Debug, Clone, Copy)]
enum Fault {
    FlippedBit,
    CutShort,
    Gone,
}

fn inject(fault: Fault, path: &Path, dice: &mut Dice) {
    let mut bytes = fs::read(path).unwrap();
    match fault {
        Fault::FlippedBit => {
            let at = dice.below(bytes.len());
            bytes[at] ^= 1 << dice.below(8);
            fs::write(path, bytes).unwrap();
        }
        Fault::CutShort => fs::write(path, &bytes[..dice.below(bytes.len())]).unwrap(),
        Fault::Gone => fs::remove_file(path).unwrap(),
    }
}

/// Whatever happens to whichever file between two stages, the next run repairs it before anything reads it.
#[test]
fn a_file_that_was_spoilt_between_stages_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    succeeded(everything("analyze", out).output().unwrap());
    let expected = contents(out);
    let mut dice = Dice::new();
    let count = cases(9, 300);
    for case in 0..count {
        let fault = [Fault::FlippedBit, Fault::CutShort, Fault::Gone][case % 3];
        let derived = pipeline::analyze::derived_tables();
        // Of a stage that is read, which the derived tables are not.
        let read: Vec<&String> = expected
            .iter()
            .map(|f| &f.0)
            .filter(|name| !derived.iter().any(|d| name.starts_with(&format!("tables/{d}/"))))
            .collect();
        let name = read[dice.below(read.len())];
        inject(fault, &out.join(name), &mut dice);
        fs::remove_file(out.join("stages/analyze.json")).unwrap();
        succeeded(everything("analyze", out).output().unwrap());
        assert_same(out, &expected, &format!("{fault:?} of {name}"));
    }
    println!("faults injected into finished stages: {count}");
}

/// The same for a stage that was not finished, whose shards are taken over.
#[test]
fn a_shard_that_was_spoilt_before_a_run_resumed_is_made_anew() {
    let whole = tempfile::tempdir().unwrap();
    succeeded(everything("ablate", whole.path()).output().unwrap());
    let expected = contents(whole.path());
    let mut dice = Dice::new();
    let count = cases(4, 100);
    for case in 0..count {
        let (stage, folders): (&str, &[&str]) = match case % 2 {
            0 => ("trace", &["tables/clean/", "tables/direct_effects/", "work/", "activations/"]),
            _ => {
                ("ablate", &["tables/ablations/", "tables/component_repairs/", "tables/neuron", "tables/repair_graph/"])
            }
        };
        let out = whole.path();
        let names: Vec<&String> =
            expected.iter().map(|f| &f.0).filter(|n| folders.iter().any(|f| n.starts_with(f))).collect();
        let name = names[dice.below(names.len())];
        inject(Fault::FlippedBit, &out.join(name), &mut dice);
        let manifest = out.join(format!("stages/{stage}.json"));
        let text = fs::read_to_string(&manifest).unwrap();
        fs::write(&manifest, text.replace("\"complete\": true", "\"complete\": false")).unwrap();
        succeeded(everything("ablate", out).output().unwrap());
        assert_same(out, &expected, &format!("a flipped bit of {name} in an unfinished {stage}"));
    }
    println!("faults injected into unfinished stages: {count}");
}

/// The sums over the shards so far, which are there only while `ablate` runs, and the stages' own records.
#[test]
fn records_that_were_spoilt_lose_time_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    succeeded(everything("analyze", out).output().unwrap());
    let expected = contents(out);
    let mut dice = Dice::new();
    let records: Vec<_> = files(&out.join("stages")).into_iter().map(|p| p.file_name().unwrap().to_owned()).collect();
    assert!(records.iter().any(|r| r == "trace.sha256") && records.iter().any(|r| r == "trace.json"));
    let count = cases(4, 150);
    for case in 0..count {
        let record = out.join("stages").join(&records[dice.below(records.len())]);
        inject([Fault::FlippedBit, Fault::CutShort][case % 2], &record, &mut dice);
        fs::remove_file(out.join("stages/analyze.json")).ok();
        succeeded(everything("analyze", out).output().unwrap());
        assert_same(out, &expected, &format!("a fault in {}", record.display()));
    }
    println!("faults injected into records: {count}");
}

#[test]
fn status_verify_finds_a_changed_byte() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("trace", dir.path(), &[]));
    let status = |arguments: &[&str]| {
        succeeded(pipeline().arg("status").arg("--out").arg(dir.path()).args(arguments).output().unwrap())
    };
    let path = dir.path().join("tables/clean/00000.parquet");
    assert!(!status(&["--verify"]).contains("damaged"));
    inject(Fault::FlippedBit, &path, &mut Dice(5));
    assert!(!status(&[]).contains("damaged"), "sizes alone do not tell");
    let shown = status(&["--verify"]);
    assert!(shown.contains("damaged") && shown.contains("tables/clean/00000.parquet changed"), "{shown}");
    let output = run_tiny("ablate", dir.path(), &[]);
    assert!(text(&output.stderr).contains("clean/00000.parquet has changed since it was written"));
    succeeded(output);
    assert!(!status(&["--verify"]).contains("damaged"));
}

/// What comes from outside is not repaired but refused, by name.
#[test]
fn a_checkpoint_that_was_cut_short_or_changed_is_refused_or_measured_as_another() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("model");
    fs::create_dir(&folder).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(Path::new(TINY).join(name), folder.join(name)).unwrap();
    }
    let (source, out) = (format!("model.source={}", folder.display()), dir.path().join("out"));
    succeeded(run_tiny("trace", &out, &[&source]));
    let weights = folder.join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    for keep in [0, 7, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&weights, &bytes[..keep]).unwrap();
        let error = failed(run_tiny("trace", &out, &[&source]));
        assert!(error.contains("model.safetensors"), "{keep}: {error}");
    }
    let mut other = bytes.clone();
    // The lowest bit of a weight: another model, as near as can be.
    let at = other.len() - 400;
    other[at] ^= 1;
    fs::write(&weights, &other).unwrap();
    let output = run_tiny("trace", &out, &[&source]);
    assert!(text(&output.stderr).contains("cleared: model's checksum"), "{}", text(&output.stderr));
    succeeded(output);
}
