//! A run folder grows by pieces: requests in any order, killed or shared, add up to one request for everything.

use std::collections::BTreeMap;
use std::fs;
use std::process::Stdio;
use std::time::Duration;

use arrow::datatypes::DataType;

use super::*;

/// One corpus, cut and seed for all requests. Several shards of `trace` and of `ablate`.
const STORE: [&str; 4] = [
    "model.source=tests/fixtures/tiny-llama",
    "corpus.source=tests/fixtures/corpus.txt",
    "corpus.tokens=1120",
    "corpus.prompt_len=8",
];

/// What a request may ask for besides.
const KINDS: [&str; 3] = ["resample", "mean", "zero"];
const COMPONENTS: [(&str, &str); 6] =
    [("heads", "L0H1"), ("heads", "L1"), ("heads", "L2H2"), ("mlps", "L1"), ("blocks", "L0"), ("attention", "L2")];
const LAYERS: [&str; 3] = ["L0", "L1", "L2"];
const MULTIPLES: [&str; 3] = ["1.0", "3.0", "5.0"];

/// Kinds, components, holds, whether distributions are measured, layers of neurons, and additions: prompts and multiples.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub kinds: Vec<&'static str>,
    pub components: Vec<(&'static str, &'static str)>,
    pub erasers: bool,
    pub distribution: bool,
    pub layers: Vec<&'static str>,
    pub additions: usize,
    pub multiples: Vec<&'static str>,
}

impl Request {
    fn drawn(dice: &mut Dice) -> Self {
        let mut some = |n: usize| (0..n).filter(|_| dice.below(2) == 0).collect::<Vec<_>>();
        let (kinds, components, layers) = (some(KINDS.len()), some(COMPONENTS.len()), some(LAYERS.len()));
        let multiples = some(MULTIPLES.len());
        let of = |n: Vec<usize>, least: usize| if n.is_empty() { vec![least] } else { n };
        Self {
            kinds: of(kinds, 0).into_iter().map(|i| KINDS[i]).collect(),
            components: of(components, 2).into_iter().map(|i| COMPONENTS[i]).collect(),
            erasers: dice.below(3) == 0,
            distribution: dice.below(3) == 0,
            layers: layers.into_iter().map(|i| LAYERS[i]).collect(),
            additions: dice.below(3) * 2,
            multiples: of(multiples, 1).into_iter().map(|i| MULTIPLES[i]).collect(),
        }
    }

    fn everything() -> Self {
        Self {
            kinds: KINDS.to_vec(),
            components: COMPONENTS.to_vec(),
            erasers: true,
            distribution: true,
            layers: LAYERS.to_vec(),
            additions: 4,
            multiples: MULTIPLES.to_vec(),
        }
    }

    fn settings(&self) -> Vec<String> {
        let list = |items: &[&str]| {
            let quoted: Vec<String> = items.iter().map(|item| format!("\"{item}\"")).collect();
            format!("[{}]", quoted.join(", "))
        };
        let mut settings: Vec<String> = STORE.map(String::from).to_vec();
        settings.push(format!("ablation.kinds={}", list(&self.kinds)));
        for key in ["heads", "mlps", "blocks", "attention"] {
            let of_key: Vec<&str> = self.components.iter().filter(|c| c.0 == key).map(|c| c.1).collect();
            settings.push(format!("ablation.{key}={}", list(&of_key)));
        }
        settings.push(format!("ablation.hold={}", if self.erasers { "[\"erasers\"]" } else { "[]" }));
        settings.push(format!("ablation.distribution={}", self.distribution));
        settings.push(format!("neurons.layers={}", list(&self.layers)));
        settings.push(format!("iterative.prompts={}", self.additions));
        if !self.multiples.is_empty() {
            settings.push(format!("iterative.multiples=[{}]", self.multiples.join(", ")));
        }
        settings
    }

    pub fn command(&self, stage: &str, out: &Path) -> Command {
        let mut command = pipeline();
        command.args(["run", stage, "--out"]).arg(out).stdout(Stdio::piped()).stderr(Stdio::piped());
        for setting in self.settings() {
            command.args(["--set", &setting]);
        }
        command
    }

    pub fn run(&self, stage: &str, out: &Path) -> Output {
        self.command(stage, out).output().unwrap()
    }
}

/// Rows of a table by what is no measured number; the numbers in the order of the columns. Which of several repairers of
/// the same strength comes first depends on rounding, so they are told by their rank.
pub fn rows(out: &Path, table: &str) -> BTreeMap<String, Vec<f64>> {
    let batch = read(&out.join("tables").join(table));
    let is_number = |t: &DataType| matches!(t, DataType::Float32);
    let by_rank = ["repairer", "repairer_layer", "repairer_head", "repairer_name", "neuron"];
    let ranked = batch.schema().field_with_name("rank").is_ok() && table != "top_tokens";
    let schema = batch.schema();
    let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
    let (numbered, keys): (Vec<&str>, Vec<&str>) =
        names.iter().partition(|name| is_number(schema.field_with_name(name).unwrap().data_type()));
    let keys: Vec<&str> = keys.into_iter().filter(|name| !(ranked && by_rank.contains(name))).collect();
    let values: Vec<Vec<f64>> = numbered.iter().map(|name| numbers(&batch, name)).collect();
    let index = index(&batch, &keys);
    assert_eq!(index.len(), batch.num_rows(), "{table} has a row twice");
    let of = |row: usize| {
        numbered.iter().zip(&values).filter(|(n, _)| **n != "direct_effect" || !ranked).map(|(_, v)| v[row]).collect()
    };
    index.into_iter().map(|(key, row)| (key.join(" "), of(row))).collect()
}

pub const MEASURED: [&str; 12] = [
    "pairs",
    "top_tokens",
    "ablations",
    "distributions",
    "component_repairs",
    "neuron_repairs",
    "neuron_totals",
    "neuron_curves",
    "repair_graph",
    "self_additions",
    "stream_additions",
    "head_similarity",
];

/// The same keys, and numbers within 1e-5 of the largest in their column.
#[track_caller]
pub fn assert_same_rows(tables: &[&str], out: &Path, expected: &Path, when: &str) {
    assert_rows_within(1e-5, tables, out, expected, when);
}

/// As [`assert_same_rows`], with another tolerance.
#[track_caller]
pub fn assert_rows_within(tolerance: f64, tables: &[&str], out: &Path, expected: &Path, when: &str) {
    for table in tables {
        let (ours, theirs) = (rows(out, table), rows(expected, table));
        assert!(
            ours.keys().eq(theirs.keys()),
            "{table} has other rows after {when}: {} and {}",
            ours.len(),
            theirs.len()
        );
        let columns = theirs.values().next().map_or(0, Vec::len);
        for column in 0..columns {
            let scale = theirs.values().map(|v| v[column].abs()).filter(|v| v.is_finite()).fold(1.0, f64::max);
            for (key, theirs) in &theirs {
                let (a, b) = (ours[key][column], theirs[column]);
                let same = (a - b).abs() <= tolerance * scale || a.is_nan() && b.is_nan();
                assert!(same, "{table}, number {column} of {key}: {a} and {b} after {when}");
            }
        }
    }
}

/// Two processes that share a request.
fn shared(request: &Request, out: &Path) {
    let child = |set: &str| request.command("ablate", out).args(["--shard", set]).spawn().unwrap();
    let children = [child("1/2"), child("2/2")];
    for child in children {
        succeeded(child.wait_with_output().unwrap());
    }
}

#[test]
fn requests_in_any_order_add_up_to_one_for_everything() {
    let at_once = tempfile::tempdir().unwrap();
    succeeded(Request::everything().run("ablate", at_once.path()));
    let (mut dice, count) = (Dice::new(), cases(3, 60));
    let (mut kills, mut shares) = (0, 0);
    for case in 0..count {
        let dir = tempfile::tempdir().unwrap();
        let mut story = Vec::new();
        for _ in 0..2 + dice.below(3) {
            let request = Request::drawn(&mut dice);
            story.push(format!("{request:?}"));
            match dice.below(4) {
                0 => {
                    shares += 1;
                    shared(&request, dir.path());
                }
                1 | 2 => {
                    // Perhaps it is finished before.
                    let mut child = request.command("ablate", dir.path()).spawn().unwrap();
                    std::thread::sleep(Duration::from_millis(150 + dice.below(900) as u64));
                    child.kill().unwrap();
                    child.wait_with_output().unwrap();
                    kills += 1;
                }
                _ => {
                    succeeded(request.run("ablate", dir.path()));
                }
            }
        }
        succeeded(Request::everything().run("ablate", dir.path()));
        assert_same_rows(&MEASURED, dir.path(), at_once.path(), &format!("case {case}: {}", story.join("; then ")));
        // Nothing is left of what was computed on the way.
        let left = files(&dir.path().join("work/ablate"));
        let is_record = |p: &PathBuf| p.extension().is_some_and(|e| e == "json");
        assert!(left.iter().all(is_record), "{left:?}");
        let status = succeeded(pipeline().arg("status").arg("--out").arg(dir.path()).output().unwrap());
        assert!(!status.contains("unfinished") && !status.contains("not written by this run"), "{status}");
    }
    println!("sequences of requests: {count}, with {kills} kills and {shares} shared");
}

#[test]
fn the_same_requests_in_the_same_order_give_the_same_bytes() {
    let small = Request { components: vec![("heads", "L1")], kinds: vec!["resample"], ..Request::everything() };
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    succeeded(small.run("analyze", one.path()));
    succeeded(Request::everything().run("analyze", one.path()));
    let expected = contents(one.path());
    succeeded(small.run("analyze", other.path()));
    // The second request is killed now and then.
    for delay in [300, 600, 900, 1200] {
        let mut child = Request::everything().command("analyze", other.path()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait_with_output().unwrap();
    }
    succeeded(Request::everything().run("analyze", other.path()));
    assert_same(other.path(), &expected, "two requests, the second killed");
    // Less than what is there changes nothing.
    succeeded(small.run("ablate", other.path()));
    assert_same(other.path(), &expected, "a request for less");
}

/// Name and time of every file of a table.
fn times(out: &Path, table: &str) -> BTreeMap<PathBuf, SystemTime> {
    let files = files(&out.join("tables").join(table));
    files.into_iter().map(|p| (p.clone(), p.metadata().unwrap().modified().unwrap())).collect()
}

#[test]
fn what_is_measured_is_not_measured_again() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    let request = |kinds: &[&'static str], components: &[(&'static str, &'static str)]| Request {
        kinds: kinds.to_vec(),
        components: components.to_vec(),
        ..Default::default()
    };
    succeeded(request(&["resample"], &[("heads", "L1")]).run("all", out));
    let before = times(out, "ablations");
    let added = request(&["resample", "zero"], &[("heads", "L1"), ("mlps", "L2")]).run("all", out);
    let said = text(&added.stderr);
    assert!(said.contains("measured already: resample: 4 heads (layer 1)"), "{said}");
    let summary = succeeded(added);
    assert!(summary.contains("zero: 4 heads (layer 1), 1 MLP (layer 2)"), "{summary}");
    let after = times(out, "ablations");
    assert!(before.iter().all(|(path, time)| after.get(path) == Some(time)), "resample was written again");
    assert!(after.len() > before.len());
    // Only what is missing is asked of the model.
    let batch = read(&out.join("tables/ablations"));
    let count = |ablation: &str| texts(&batch, "ablation").iter().filter(|a| *a == ablation).count();
    assert_eq!((count("resample"), count("zero")), (5 * 140 * 7, 5 * 140 * 7));
    // Derived tables cover everything.
    let summary = read(&out.join("tables/head_summary"));
    let kinds: std::collections::BTreeSet<String> = texts(&summary, "ablation").into_iter().collect();
    assert_eq!(Vec::from_iter(kinds), ["resample", "zero"]);
    // Activations are added without measuring the clean pass again.
    let clean = times(out, "clean");
    let mut save = request(&["zero"], &[("heads", "L1H0")]).command("trace", out);
    succeeded(save.args(["--set", "trace.save=[\"residual_final\"]"]).output().unwrap());
    assert_eq!(times(out, "clean"), clean);
    assert_eq!(files(&out.join("activations/residual_final")).len(), clean.len());
}

/// Multiples, heads and prompts of additions are added; only the comparison of heads, a mean over prompts, is replaced.
#[test]
fn additions_are_not_measured_again() {
    let (dir, at_once) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let out = dir.path();
    let request = |prompts: usize, multiples: &[&'static str], heads: &'static str| Request {
        kinds: vec!["zero"],
        components: vec![("heads", heads)],
        additions: prompts,
        multiples: multiples.to_vec(),
        ..Default::default()
    };
    let lasts = |before: &BTreeMap<PathBuf, SystemTime>, table: &str| {
        let after = times(out, table);
        before.iter().all(|(path, time)| after.get(path) == Some(time))
    };
    succeeded(request(2, &["1.0"], "L1H0").run("ablate", out));
    let (own, stream) = (times(out, "self_additions"), times(out, "stream_additions"));
    let similarity = times(out, "head_similarity");
    // A multiple and a head more.
    let said = text(&request(2, &["1.0", "3.0"], "L1").run("ablate", out).stderr);
    assert!(said.contains("measured already: zero: 1 head (layer 1); additions of 1 times a head's output"), "{said}");
    assert!(lasts(&own, "self_additions") && lasts(&stream, "stream_additions"));
    assert!(lasts(&similarity, "head_similarity") && times(out, "head_similarity").len() == 1);
    // Prompts more.
    let more = request(4, &["1.0", "3.0"], "L1");
    succeeded(more.run("ablate", out));
    assert!(lasts(&own, "self_additions") && lasts(&stream, "stream_additions"));
    assert!(!lasts(&similarity, "head_similarity") && times(out, "head_similarity").len() == 1);
    succeeded(more.run("ablate", at_once.path()));
    assert_same_rows(&MEASURED, out, at_once.path(), "additions one after another");
    // Less changes nothing, and a lost file is measured again.
    let before = contents(out);
    succeeded(request(2, &["3.0"], "L1H2").run("ablate", out));
    assert_same(out, &before, "a request for less");
    for table in ["self_additions", "stream_additions", "head_similarity"] {
        times(out, table).keys().for_each(|path| fs::remove_file(path).unwrap());
    }
    succeeded(more.run("ablate", out));
    assert_same_rows(&MEASURED, out, at_once.path(), "lost files");
}

#[test]
fn a_contradiction_is_refused_before_anything_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let request = Request { kinds: vec!["zero"], components: vec![("heads", "L1H0")], ..Default::default() };
    succeeded(request.run("all", &out));
    let before = contents(&out);
    for (setting, words) in [
        ("corpus.tokens=560", "corpus.tokens 1120 → 560"),
        ("ablation.seed=7", "ablation.seed 0 → 7"),
        ("analysis.top_fraction=0.5", "analysis.top_fraction 0.02 → 0.5"),
        ("neurons.top_k=3", "neurons.top_k 10 → 3"),
        ("ablation.resample.samples=2", "ablation.resample.samples 1 → 2"),
        ("corpus.source=tests/fixtures/smollm2/corpus.txt", "corpus"),
    ] {
        if setting.contains("smollm2") && !Path::new("tests/fixtures/smollm2/corpus.txt").exists() {
            continue;
        }
        for stage in ["corpus", "all"] {
            let error = failed(request.command(stage, &out).args(["--set", setting]).output().unwrap());
            let more =
                ["zero: 1 head (layer 1)", "980 rows of ablations", "of work", "--replace", "nothing was changed"];
            for words in [&[words][..], &more].concat() {
                assert!(error.contains(words), "{setting}: `{words}` is not in: {error}");
            }
            assert!(error.contains(&format!("--out {}", dir.path().join("out-2").display())), "{error}");
        }
        let plan = succeeded(request.command("all", &out).args(["--dry-run", "--set", setting]).output().unwrap());
        assert!(plan.contains(words) && plan.contains("this would be refused"), "{plan}");
        let mut status = pipeline();
        status.args(["status", "--out"]).arg(&out);
        for set in request.settings().iter().map(String::as_str).chain([setting]) {
            status.args(["--set", set]);
        }
        let shown = succeeded(status.output().unwrap());
        assert!(shown.contains("contradicts the run that is here") && shown.contains(words), "{shown}");
    }
    assert_same(&out, &before, "refused requests");
}

#[test]
fn a_run_is_replaced_once_the_new_one_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let (out, fresh) = (dir.path().join("out"), dir.path().join("fresh"));
    let request = Request { kinds: vec!["zero"], components: vec![("heads", "L1H0")], ..Default::default() };
    succeeded(request.run("all", &out));
    let old = contents(&out);
    let other = ["--set", "ablation.seed=7", "--set", "ablation.kinds=resample"];
    succeeded(request.command("all", &fresh).args(other).output().unwrap());
    fs::write(out.join("notes.txt"), "mine").unwrap();
    for delay in [100, 250, 400] {
        let mut child = request.command("all", &out).args(other).arg("--replace").spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait_with_output().unwrap();
        let is_there = |name: &str| out.join("replacement").join(name).exists();
        if is_there("") && !is_there(".complete") && !is_there(".moving") {
            let kept: Vec<_> = contents(&out).into_iter().collect();
            assert!(kept == old, "the old results are there until the new ones are complete");
        }
    }
    succeeded(request.command("all", &out).args(other).arg("--replace").output().unwrap());
    assert_same(&out, &contents(&fresh), "a replacement");
    assert!(!out.join("replacement").exists() && fs::read_to_string(out.join("notes.txt")).unwrap() == "mine");
    // There is nothing to replace any more.
    succeeded(request.command("all", &out).args(other).arg("--replace").output().unwrap());
}

#[test]
fn fresh_and_drop_remove_only_after_a_yes() {
    let dir = tempfile::tempdir().unwrap();
    let (out, other) = (dir.path().join("out"), dir.path().join("other"));
    let request = |kinds: &[&'static str], heads: &'static str| Request {
        kinds: kinds.to_vec(),
        components: vec![("heads", heads)],
        layers: vec!["L2"],
        ..Default::default()
    };
    succeeded(request(&["zero", "resample"], "L1").run("all", &out));
    let before = contents(&out);
    let error = failed(request(&["zero"], "L1").command("all", &out).arg("--fresh").output().unwrap());
    assert!(error.contains("--fresh removes what is in") && error.contains("add --yes"), "{error}");
    let drop = |arguments: &[&str]| pipeline().arg("drop").args(arguments).arg("--out").arg(&out).output().unwrap();
    let error = failed(drop(&["ablation=zero"]));
    assert!(error.contains("zero: 4 heads (layer 1)") && error.contains("add --yes"), "{error}");
    let error = failed(drop(&["ablation=mean", "--yes"]));
    assert!(error.contains("nothing of that is in") && error.contains("resample: 4 heads (layer 1)"), "{error}");
    assert_same(&out, &before, "refusals");

    // One head, then a kind: what is left is what a run without them has.
    succeeded(drop(&["name=L1H2", "--yes"]));
    succeeded(drop(&["ablation=zero", "--yes"]));
    let left = Request {
        components: vec![("heads", "L1H0"), ("heads", "L1H1"), ("heads", "L1H3")],
        ..request(&["resample"], "L1")
    };
    succeeded(left.run("all", &other));
    for table in MEASURED
        .iter()
        .filter(|table| **table != "distributions" && !table.contains("additions") && **table != "head_similarity")
    {
        assert_eq!(rows(&out, table), rows(&other, table), "{table}");
    }
    // The rest is measured again when it is asked for, and nothing else.
    let kept = times(&out, "ablations");
    succeeded(request(&["zero", "resample"], "L1").run("all", &out));
    assert!(kept.iter().all(|(path, time)| times(&out, "ablations").get(path) == Some(time)));
    assert_eq!(rows(&out, "ablations").len(), 2 * 4 * 140 * 7);
    // Over from the start.
    succeeded(request(&["zero"], "L1").command("all", &out).args(["--fresh", "--yes"]).output().unwrap());
    assert_eq!(rows(&out, "ablations").len(), 4 * 140 * 7);
}

/// By their bytes, not by how their paths are spelt.
#[test]
fn inputs_are_the_same_by_any_path() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let request = Request { kinds: vec!["zero"], components: vec![("heads", "L1H0")], ..Default::default() };
    succeeded(request.run("all", &out));
    let before = times(&out, "ablations");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (model, corpus) = (root.join("tests/fixtures/tiny-llama"), root.join("tests/fixtures/corpus.txt"));
    std::os::unix::fs::symlink(&model, dir.path().join("model")).unwrap();
    fs::copy(&corpus, dir.path().join("copy.txt")).unwrap();
    let spellings = [
        (model.clone(), corpus.clone()),
        ("./tests/../tests/fixtures/tiny-llama/".into(), "tests/fixtures/../fixtures/corpus.txt".into()),
        (dir.path().join("model"), dir.path().join("copy.txt")),
    ];
    for (model, corpus) in spellings {
        let settings = [format!("model.source={}", model.display()), format!("corpus.source={}", corpus.display())];
        let output =
            request.command("all", &out).args(["--set", &settings[0], "--set", &settings[1]]).output().unwrap();
        assert!(text(&output.stderr).contains("ablate up to date"), "{}", text(&output.stderr));
        succeeded(output);
    }
    assert_eq!(times(&out, "ablations"), before);
    // A model is called by the whole name of its folder.
    let named = dir.path().join("Tiny2.5-0.5B");
    std::os::unix::fs::symlink(&model, &named).unwrap();
    let settings = format!("model.source={}", named.display());
    succeeded(request.command("export", &dir.path().join("named")).args(["--set", &settings]).output().unwrap());
    assert_eq!(texts(&read(&dir.path().join("named/tables/model")), "name"), ["Tiny2.5-0.5B"]);
}

#[test]
fn an_unfinished_piece_goes_on_where_it_is_rounded_alike_or_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    let request = Request { kinds: vec!["zero"], components: vec![("heads", "L1")], ..Default::default() };
    let shard = succeeded(request.command("ablate", out).args(["--shard", "1/2"]).output().unwrap());
    assert!(shard.contains("still to run: --shard 2/2"), "{shard}");
    let status = || succeeded(pipeline().arg("status").arg("--out").arg(out).output().unwrap());
    assert!(status().contains("unfinished, 2 shards done: zero: 4 heads (layer 1)"), "{}", status());

    // As if its first shards had been computed on another processor.
    let plan = out.join("work/ablate/00001/plan.json");
    let ours = fs::read_to_string(&plan).unwrap();
    let mut other: serde_json::Value = serde_json::from_str(&ours).unwrap();
    other["rounding"]["instructions"] = "another".into();
    fs::write(&plan, other.to_string()).unwrap();
    let error = failed(request.run("ablate", out));
    for words in ["was begun elsewhere (instructions another →", "2 finished shards", "pipeline drop unfinished"] {
        assert!(error.contains(words), "`{words}` is not in {error}");
    }
    let drop = |what: &str| pipeline().args(["drop", what, "--yes", "--out"]).arg(out).output().unwrap();
    assert!(succeeded(drop("unfinished")).contains("unfinished: zero: 4 heads (layer 1)"));
    assert!(!status().contains("unfinished") && files(&out.join("work/ablate")).is_empty());
    succeeded(request.run("ablate", out));
    assert_eq!(rows(out, "ablations").len(), 4 * 140 * 7);
    assert!(failed(drop("unfinished")).contains("nothing of that is in"));

    // Additions go as a whole.
    let with_additions = Request { additions: 2, ..request };
    succeeded(with_additions.run("ablate", out));
    assert!(read(&out.join("tables/self_additions")).num_rows() > 0);
    assert!(succeeded(drop("additions")).contains("additions of 1, 3, 5 times a head's output on 2 prompts"));
    assert_eq!(read(&out.join("tables/self_additions")).num_rows(), 0);
}
