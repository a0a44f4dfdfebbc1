//! Caches as Python's `huggingface_hub` leaves them, without a network.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;

/// A repository of the cache with one commit: files in `snapshots/` are links to `blobs/`.
fn cache(cache: &Path, folder: &str, revision: Option<&str>, files: &[(&str, Vec<u8>)]) {
    let root = cache.join(folder);
    for (name, bytes) in files {
        let id: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
        let path = root.join("snapshots").join(COMMIT).join(name);
        fs::create_dir_all(root.join("blobs")).unwrap();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(root.join("blobs").join(&id), bytes).unwrap();
        symlink(format!("{}blobs/{id}", "../".repeat(name.split('/').count() + 1)), path).unwrap();
    }
    if let Some(revision) = revision {
        fs::create_dir_all(root.join("refs")).unwrap();
        fs::write(root.join("refs").join(revision), COMMIT).unwrap();
    }
}

fn offline(out: &Path, settings: &[&str], environment: &[(&str, &Path)]) -> Output {
    let mut command = pipeline();
    command.args(["run", "corpus", "--out"]).arg(out);
    for setting in TINY_SETTINGS.iter().chain(settings) {
        command.args(["--set", setting]);
    }
    for name in ["HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN"] {
        command.env_remove(name);
    }
    command.env("HF_HUB_OFFLINE", "1").envs(environment.iter().copied()).output().unwrap()
}

#[test]
fn a_pinned_commit_without_a_reference_is_found_in_the_cache_that_a_variable_names() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, empty) = (dir.path().join("hub"), dir.path().join("empty"));
    let file = |name| (name, fs::read(Path::new(TINY).join(name)).unwrap());
    cache(&hub, "models--me--tiny", None, &["config.json", "model.safetensors", "tokenizer.json"].map(file));
    let revision = format!("model.revision={COMMIT}");
    let pinned = ["model.source=hf:me/tiny", revision.as_str()];
    let out = dir.path().join("out");
    for environment in [
        vec![("HF_HOME", dir.path())],
        vec![("HF_HUB_CACHE", &*hub), ("HF_HOME", &*empty)],
        vec![("HUGGINGFACE_HUB_CACHE", &*hub), ("HF_HOME", &*empty)],
        vec![("HF_HUB_CACHE", &*hub), ("HUGGINGFACE_HUB_CACHE", &*empty)],
    ] {
        succeeded(offline(&out, &pinned, &environment));
    }
    let error = failed(offline(&out, &pinned, &[("HF_HOME", &empty)]));
    assert!(error.contains("hf:me/tiny is not in the cache") && error.contains("empty/hub"), "{error}");
    // A branch of which no reference tells the commit.
    let error = failed(offline(&out, &pinned[..1], &[("HF_HUB_CACHE", &hub)]));
    assert!(error.contains("hf:me/tiny is not in the cache"), "{error}");
}

#[test]
fn of_a_data_set_the_split_train_is_read_by_its_own_rules() {
    let dir = tempfile::tempdir().unwrap();
    let text = |word: &str| format!("{word}\n").repeat(3000).into_bytes();
    let first = |out: &Path| texts(&read(&out.join("tables/tokens")), "text")[1].clone();
    let read_as = |name: &str, files: &[(&str, Vec<u8>)]| {
        cache(&dir.path().join("hub"), &format!("datasets--me--{name}"), Some("main"), files);
        let out = dir.path().join(name);
        let source = format!("corpus.source=hf:me/{name}");
        succeeded(offline(&out, &[&source], &[("HF_HOME", dir.path())]));
        first(&out)
    };
    let (train, test) = (text("x x x"), text("y y y"));
    // `train` is a part of the folder's name, and `test` comes first.
    let files = [("pretraining/test-0.txt", test.clone()), ("pretraining/train-0.txt", train.clone())];
    assert_eq!(read_as("pretrain", &files), "x");
    let card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: b/*\n---\n";
    let files = [("train.txt", test), ("b/other.txt", train), ("README.md", card.as_bytes().to_vec())];
    assert_eq!(read_as("described", &files), "x");
}
