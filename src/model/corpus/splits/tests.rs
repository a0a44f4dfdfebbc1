//! The expected files are those that `datasets` 5.2 resolves for the same names.

use super::*;

fn chosen(files: &[&str], readme: Option<&str>) -> Result<Vec<String>> {
    let files: Vec<String> = files.iter().map(|f| f.to_string()).collect();
    training_files(&files, readme)
}

fn error(files: &[&str], readme: Option<&str>) -> String {
    format!("{:#}", chosen(files, readme).unwrap_err())
}

#[test]
fn splits_are_whole_words_of_folders_and_files() {
    for (files, expected) in [
        (
            vec!["pretraining/test-0.parquet", "pretraining/train-0.parquet", "pretraining/validation-0.parquet"],
            vec!["pretraining/train-0.parquet"],
        ),
        (
            vec!["constrained/a.parquet", "my-training.1.parquet", "restrained-train_x.parquet", "trainer.parquet"],
            vec!["restrained-train_x.parquet", "my-training.1.parquet"],
        ),
        (
            vec![
                "data/test-00000-of-00001.parquet",
                "data/train-00000-of-00002.parquet",
                "data/train-00001-of-00002-abc.parquet",
                "other/train.parquet",
                "train.parquet",
            ],
            vec!["data/train-00000-of-00002.parquet", "data/train-00001-of-00002-abc.parquet"],
        ),
        (
            vec!["train/en/0.parquet", "train/fr/1.parquet", "test/0.parquet", "dev-set/x.parquet"],
            vec!["train/en/0.parquet", "train/fr/1.parquet"],
        ),
        (vec!["train/a.parquet", "b/train.parquet"], vec!["train/a.parquet"]),
        (
            vec!["my_train_set/a.parquet", "pretrain/b.parquet", "train2/c.parquet"],
            vec!["train2/c.parquet", "my_train_set/a.parquet"],
        ),
        (
            vec!["en/a.parquet", "fr/b.parquet", ".hidden/c.parquet", "__x/d.parquet"],
            vec!["en/a.parquet", "fr/b.parquet"],
        ),
        (vec!["Train.parquet", "x.parquet"], vec!["Train.parquet", "x.parquet"]),
        (vec!["test00.txt", "train00.txt", "train01.txt"], vec!["train00.txt", "train01.txt"]),
        (vec!["a.train.jsonl.gz", "a.valid.jsonl.gz", "evaluation.jsonl.gz"], vec!["a.train.jsonl.gz"]),
        // One split is read, whatever it is called.
        (vec!["test.parquet"], vec!["test.parquet"]),
        (vec!["data/all-00000-of-00001.parquet"], vec!["data/all-00000-of-00001.parquet"]),
    ] {
        assert_eq!(chosen(&files, None).unwrap(), expected, "{files:?}");
    }
}

#[test]
fn without_a_split_train_one_must_be_named() {
    let said = error(&["data/test_sft-00000-of-00001.parquet", "data/train_sft-00000-of-00001.parquet"], None);
    assert!(said.contains("the splits test_sft, train_sft and no split train"), "{said}");
    assert!(said.contains("name it in corpus.source"), "{said}");
    assert!(error(&["a.csv", "README.md"], None).contains("no .parquet, .jsonl or .txt files"));
}

#[test]
fn a_readme_says_which_files_are_the_split() {
    let card = |header: &str| format!("---\n{header}---\n# A data set\n");
    for (header, files, expected) in [
        (
            "configs:\n- config_name: en\n  data_files: en/*.parquet\n- config_name: default\n  data_files:\n  - split: \
             train\n    path: all/train-*\n  - split: test\n    path: all/test-*\n",
            vec!["en/a.parquet", "all/train-0.parquet", "all/test-0.parquet", "all/train-1.parquet"],
            vec!["all/train-0.parquet", "all/train-1.parquet"],
        ),
        (
            "license: mit\nconfigs:\n  - config_name: \"a\"\n    data_files: [\"a/1.parquet\", 'a/0.parquet']\n  - \
             config_name: b   # the other\n    default: true\n    data_files:\n      - split: validation\n        path: \
             b/v.parquet\n      - split: train\n        path:\n          - b/2.parquet\n          - b/1*.parquet\n",
            vec!["a/0.parquet", "a/1.parquet", "b/v.parquet", "b/2.parquet", "b/10.parquet", "b/11.parquet"],
            vec!["b/2.parquet", "b/10.parquet", "b/11.parquet"],
        ),
        (
            "configs:\n- config_name: x\n  data_dir: sub\n",
            vec!["sub/train/a.parquet", "sub/test/b.parquet", "train/c.parquet"],
            vec!["sub/train/a.parquet"],
        ),
        (
            "configs:\n- config_name: x\n  data_dir: sub\n  data_files: '**/*.parquet'\n",
            vec!["sub/u/a.parquet", "sub/b.parquet", "train/c.parquet"],
            vec!["sub/b.parquet", "sub/u/a.parquet"],
        ),
        (
            "dataset_info:\n  features:\n  - name: text\n    dtype: string\n",
            vec!["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"],
            vec!["data/train-00000-of-00001.parquet"],
        ),
        (
            "configs:\n- config_name: x\n  data_files: 'a/*'\n",
            vec!["a/1.parquet", "a/deep/2.parquet"],
            vec!["a/1.parquet"],
        ),
        (
            "configs:\n- config_name: x\n  data_files: 'a/**'\n",
            vec!["a/1.parquet", "a/deep/2.parquet", ".hidden/a/3.parquet"],
            vec!["a/1.parquet", "a/deep/2.parquet"],
        ),
    ] {
        assert_eq!(chosen(&files, Some(&card(header))).unwrap(), expected, "{header}");
        let windows = format!("\u{feff}{}", card(header).replace('\n', "\r\n"));
        assert_eq!(chosen(&files, Some(&windows)).unwrap(), expected, "{header}");
    }
    // Without a header, names decide.
    for readme in ["# A data set\n", "---\nnot closed: true\n", "--- x\n---\n"] {
        assert_eq!(chosen(&["train.txt", "test.txt"], Some(readme)).unwrap(), ["train.txt"], "{readme}");
    }
}

#[test]
fn readmes_that_cannot_be_followed_are_refused_with_the_reason() {
    let files = ["a.parquet", "b.parquet"];
    let error = |header: &str| error(&files, Some(&format!("---\n{header}\n---\n")));
    for (header, words) in [
        (
            "configs:\n- config_name: a\n  data_files: a.parquet\n- config_name: b\n  data_files: b.parquet",
            "several configurations (a, b)",
        ),
        ("configs:\n- config_name: a\n  data_files: x/*.parquet", "`x/*.parquet`, which is no file"),
        ("configs:\n- config_name: a\n  data_files: https://example.org/a.parquet", "outside its repository"),
        ("configs:\n- config_name: a\n  data_files: 'a/***'", "the pattern `a/***`"),
        ("configs:\n- data_files: a.parquet", "no `config_name`"),
        ("configs:\n- config_name: a\n  data_files: {a: b}", "`data_files` of the configuration a"),
        ("configs: a", "not a list"),
        ("configs: [", "YAML header"),
        ("a: &x [1]\nb: *x", "alias"),
        ("? [a]\n: b", "a key is not a text"),
    ] {
        let said = error(header);
        assert!(said.contains("README.md") || said.contains("configurations"), "{said}");
        assert!(said.contains(words), "{header}: {said}");
    }
    // Deep ones take no stack, closed or not.
    for (opened, closed) in [("[", ""), ("[", "]"), ("{a: ", "}"), ("- ", "")] {
        let said = error(&format!("a:\n {}x{}", opened.repeat(100_000), closed.repeat(100_000)));
        assert!(said.contains("YAML header"), "{opened}: {said}");
    }
}

/// A pattern with many `*` and a name that almost fits it.
#[test]
fn patterns_that_can_share_a_name_in_many_ways_take_no_time() {
    let name = format!("{}/x.parquet", "a".repeat(200));
    let files = vec![name; 1000];
    let start = std::time::Instant::now();
    for pattern in ["*a".repeat(30) + "b*/x.parquet", "**/".repeat(30) + "y", "*a".repeat(30) + "*/*/x.parquet"] {
        let readme = format!("---\nconfigs:\n- config_name: a\n  data_files: '{pattern}'\n---\n");
        let said = format!("{:#}", training_files(&files, Some(&readme)).unwrap_err());
        assert!(said.contains("which is no file"), "{said}");
    }
    let many = "  - a\n".repeat(20_000);
    let readme = format!("---\nconfigs:\n- config_name: a\n  data_files:\n{many}---\n");
    assert!(format!("{:#}", training_files(&files, Some(&readme)).unwrap_err()).contains("20000 patterns"));
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}

#[test]
fn patterns_match_as_those_of_paths_do() {
    for (pattern, path, expected) in [
        ("a/*.parquet", "a/b.parquet", true),
        ("a/*.parquet", "a/b/c.parquet", false),
        ("**/*.parquet", "c.parquet", true),
        ("**/*.parquet", "a/b/c.parquet", true),
        ("a/**", "a", false),
        ("a/**", "a/b/c", true),
        ("a/**/c", "a/c", true),
        ("a/**/c", "a/b/b/c", true),
        ("a/**/c", "a/c/d", false),
        ("train-?[0-9].txt", "train-01.txt", true),
        ("train-?[!0-9].txt", "train-01.txt", false),
        ("*", ".x", true),
    ] {
        assert_eq!(PathPattern::new(pattern).unwrap().matches(path), expected, "{pattern} {path}");
        let options = glob::MatchOptions { require_literal_separator: true, ..Default::default() };
        assert_eq!(Pattern::new(pattern).unwrap().matches_with(path, options), expected, "{pattern} {path}");
    }
}

/// Words of YAML in any order.
#[test]
fn any_readme_is_followed_or_refused() {
    use proptest::prelude::*;
    use proptest::test_runner::{Config as Cases, TestRunner};

    let count = std::env::var("PIPELINE_FUZZ_EXECUTIONS").map_or(500, |count| count.parse().unwrap());
    let words = [
        "---\n",
        "configs:\n",
        "- ",
        "config_name: a\n",
        "  data_files:\n",
        "  - split: train\n",
        "    path: ",
        "train",
        "/",
        "*",
        "**",
        "?",
        "[",
        "]",
        "[!a-z]",
        "{",
        "}",
        "'",
        "\"",
        ":",
        ": ",
        ", ",
        "\n",
        "\n  ",
        "\t",
        "#",
        "&a ",
        "*a",
        "!!str ",
        "|\n",
        ">-\n",
        "? ",
        "%",
        "\u{feff}",
        "\r\n",
        "é",
        "\0",
        "...\n",
        "data_dir: x\n",
        "default: true\n",
        "0x1f",
        "~",
        "://",
    ];
    let text = prop::collection::vec(prop::sample::select(words.to_vec()), 0..60).prop_map(|words| words.concat());
    let files: Vec<String> = ["train.txt", "a/train-0.parquet", "a/b/test.jsonl", "é/x.txt"].map(String::from).to_vec();
    let mut runner = TestRunner::new(Cases { cases: count, failure_persistence: None, ..Cases::default() });
    let followed = std::cell::Cell::new(0);
    let result = runner.run(&(text, any::<bool>()), |(text, card)| {
        let readme = if card { format!("---\nconfigs:\n- config_name: a\n  data_files: {text}\n---\n") } else { text };
        followed.set(followed.get() + u32::from(training_files(&files, Some(&readme)).is_ok()));
        Ok(())
    });
    result.unwrap();
    assert!(followed.get() > 0, "every README was refused");
    println!("README: {count} cases, {} followed", followed.get());
}
