//! Files that are lost, truncated or changed outside the program.

use std::collections::BTreeSet;
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
fn a_file_corrupted_between_stages_is_regenerated() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    succeeded(everything("analyze", out).output().unwrap());
    let expected = contents(out);
    let mut dice = Dice::new();
    let count = cases(9, 120);
    for case in 0..count {
        let fault = [Fault::FlippedBit, Fault::CutShort, Fault::Gone][case % 3];
        let derived = selfrepair_query::analyze::derived_tables();
        // Of a stage that is read, which the derived tables are not.
        let read: Vec<&String> = expected
            .iter()
            .map(|f| &f.0)
            .filter(|name| !derived.iter().any(|d| name.starts_with(&format!("tables/{d}/"))))
            // Records of a finished piece are read only if the manifest is lost.
            .filter(|name| !name.starts_with("work/ablate/"))
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
fn a_shard_corrupted_before_a_run_resumes_is_regenerated() {
    let whole = tempfile::tempdir().unwrap();
    succeeded(everything("ablate", whole.path()).output().unwrap());
    let expected = contents(whole.path());
    let mut dice = Dice::new();
    let count = cases(4, 60);
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

/// Even with a record that vouches for it: what a file says it was made from decides.
#[test]
fn a_shard_of_another_configuration_is_never_taken_over() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    succeeded(everything("ablate", one.path()).output().unwrap());
    succeeded(everything("ablate", other.path()).args(["--set", "ablation.seed=7"]).output().unwrap());
    let expected = contents(one.path());
    for (stage, name) in [("ablate", "tables/ablations/00001-00001.parquet"), ("ablate", "tables/pairs/00001.parquet")]
    {
        let (ours, theirs) = (one.path().join(name), other.path().join(name));
        let sums = [&ours, &theirs].map(|p| selfrepair_core::files::sha256_of_file(p).unwrap());
        assert_ne!(sums[0], sums[1], "{name}");
        fs::copy(&theirs, &ours).unwrap();
        let done = if name.contains("pairs") { "pairs" } else { "00001" };
        for (record, from, to) in [
            (format!("stages/{stage}.sha256"), &sums[0][..], &sums[1][..]),
            (format!("work/ablate/00001/done/{done}.json"), &sums[0][..], &sums[1][..]),
            // The piece has to be put together again.
            (format!("stages/{stage}.json"), "\"pieces\"", "\"others\""),
        ] {
            let record = one.path().join(record);
            let text = fs::read_to_string(&record).unwrap();
            assert!(text.contains(from), "{}", record.display());
            fs::write(&record, text.replace(from, to)).unwrap();
        }
        succeeded(everything("ablate", one.path()).output().unwrap());
        assert_same(one.path(), &expected, &format!("{name} of another seed"));
    }
}

/// The sums over the shards so far, which are there only while `ablate` runs, and the stages' own records.
#[test]
fn corrupt_records_cost_time_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    succeeded(everything("analyze", out).output().unwrap());
    let expected = contents(out);
    let mut dice = Dice::new();
    let records: Vec<_> = files(&out.join("stages")).into_iter().map(|p| p.file_name().unwrap().to_owned()).collect();
    assert!(records.iter().any(|r| r == "trace.sha256") && records.iter().any(|r| r == "trace.json"));
    let count = cases(4, 60);
    for case in 0..count {
        let record = out.join("stages").join(&records[dice.below(records.len())]);
        inject([Fault::FlippedBit, Fault::CutShort][case % 2], &record, &mut dice);
        fs::remove_file(out.join("stages/analyze.json")).ok();
        succeeded(everything("analyze", out).output().unwrap());
        assert_same(out, &expected, &format!("a fault in {}", record.display()));
    }
    println!("faults injected into records: {count}");
}

/// Also where the request that finds it does not ask for them.
#[test]
fn a_lost_record_of_the_clean_pass_costs_no_saved_activations() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    succeeded(run_tiny("ablate", out, &["trace.save=[\"residual_final\"]"]));
    let saved = || files(&out.join("activations")).into_iter().map(|p| (p.clone(), fs::read(p).unwrap()));
    let before: Vec<_> = saved().collect();
    assert!(!before.is_empty());
    let record = out.join("stages/trace.json");
    let text = fs::read_to_string(&record).unwrap();
    for damaged in [None, Some(&text[..text.len() / 2])] {
        match damaged {
            None => fs::remove_file(&record).unwrap(),
            Some(text) => fs::write(&record, text).unwrap(),
        }
        succeeded(run_tiny("ablate", out, &[]));
        assert!(saved().eq(before.iter().cloned()), "activations are gone");
        succeeded(run_tiny("ablate", out, &["trace.save=[\"residual_final\"]"]));
        assert!(saved().eq(before.iter().cloned()), "activations are gone");
    }
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
fn a_truncated_checkpoint_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let folder = copy_of_tiny(dir.path());
    let (source, out) = (format!("model.source={}", folder.display()), dir.path().join("out"));
    let weights = folder.join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    for keep in [0, 7, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&weights, &bytes[..keep]).unwrap();
        let error = failed(run_tiny("trace", &out, &[&source]));
        assert!(error.contains("model.safetensors"), "{keep}: {error}");
    }
}

/// Other weights are another model. What is measured says which: no table of the one is ever taken for the other's.
#[test]
fn a_checkpoint_with_a_flipped_bit_is_refused_or_measured_as_another_model() {
    let dir = tempfile::tempdir().unwrap();
    let folder = copy_of_tiny(dir.path());
    let (source, out) = (format!("model.source={}", folder.display()), dir.path().join("out"));
    let replace = || {
        let mut command = pipeline();
        command.args(["run", "trace", "--replace", "--out"]).arg(&out);
        TINY_SETTINGS.iter().copied().chain([source.as_str()]).for_each(|s| {
            command.args(["--set", s]);
        });
        command.output().unwrap()
    };
    succeeded(run_tiny("trace", &out, &[&source]));
    let weights = folder.join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let checksum = || texts(&read(&out.join("tables/model")), "sha256").concat();
    let (mut dice, count, mut refused) = (Dice::new(), cases(6, 120), 0);
    let mut seen = BTreeSet::from([checksum()]);
    for case in 0..count {
        let mut corrupt = bytes.clone();
        let at = if case % 2 == 0 { dice.below(header) } else { header + dice.below(bytes.len() - header) };
        corrupt[at] ^= 1 << dice.below(8);
        fs::write(&weights, &corrupt).unwrap();
        let refusal = failed(run_tiny("trace", &out, &[&source]));
        let output = replace();
        if output.status.success() {
            assert!(refusal.contains("contradicts: model's checksum"), "{at}: {refusal}");
            assert!(seen.insert(checksum()), "byte {at} makes a model that was there before");
        } else {
            refused += 1;
            let error = failed(output);
            // A huge weight may show only where activations overflow.
            let named = ["model.safetensors", "the tensor `", "is not finite", "the checkpoint has tensors"];
            assert!(named.iter().any(|n| error.contains(n)), "byte {at}: {error}");
        }
    }
    println!("bits flipped in a checkpoint: {count}, refused {refused}");
}

/// A large file of the hub's cache is named by its checksum.
#[test]
fn a_cached_file_of_the_hub_that_changed_since_it_was_fetched_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let repo = dir.path().join("hub/models--me--tiny");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let (snapshot, blobs) = (repo.join("snapshots").join(commit), repo.join("blobs"));
    for folder in [&snapshot, &blobs, &repo.join("refs")] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(repo.join("refs/main"), commit).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        let from = Path::new(TINY).join(name);
        let sha256 = selfrepair_core::files::sha256_of_file(&from).unwrap();
        // Small files have an identifier of git there.
        let blob = blobs.join(if name.ends_with(".safetensors") { &sha256 } else { &sha256[..40] });
        fs::copy(from, &blob).unwrap();
        std::os::unix::fs::symlink(&blob, snapshot.join(name)).unwrap();
    }
    let run = || {
        let mut command = everything("export", &dir.path().join("out"));
        command.args(["--set", "model.source=hf:me/tiny"]);
        command.env("HF_HOME", dir.path()).env("HF_HUB_OFFLINE", "1").output().unwrap()
    };
    succeeded(run());
    inject(Fault::FlippedBit, &snapshot.join("model.safetensors"), &mut Dice(1));
    let error = failed(run());
    for words in ["model.safetensors has changed since it was fetched", "remove", "blobs/"] {
        assert!(error.contains(words), "`{words}` is not in: {error}");
    }
}
