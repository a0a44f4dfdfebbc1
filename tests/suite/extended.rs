//! Measurements other than ablated heads agree with `tests/reference/extended.py`: other components and kinds, held
//! components, repairing components and neurons, additions to heads' inputs, prompt sets.

use std::fs;
use std::path::Path;

use crate::parity::{assert_agrees, assert_same_inputs};
use crate::support::*;

const ROW: [&str; 7] = ["ablation", "hold", "component", "layer", "head", "prompt", "position"];

fn with<'a>(key: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [key, more].concat()
}

fn assert_extended_agrees(model: &Path, expected: &Path, components: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let source = format!("model.source={}", model.display());
    let common = [
        &source,
        "ablation.kinds=[\"resample\", \"mean\", \"zero\", \"project_out\", \"project_only\"]",
        "ablation.hold=[\"erasers\", \"last_mlp\", \"L2H1\", \"MLP1\"]",
        "ablation.distribution=true",
        "analysis.top_fraction=0.05",
        "iterative.prompts=12",
    ];
    succeeded(run_tiny("analyze", dir.path(), &[&common[..], components].concat()));
    assert_same_inputs(dir.path(), &Path::new(TINY).join("expected"));
    let agrees = |table: &str, key: &[&str]| assert_agrees(dir.path(), expected, table, key);
    agrees("ablations", &ROW);
    agrees("top_tokens", &["component", "layer", "head", "rank"]);
    agrees("component_repairs", &with(&ROW, &["rank", "repairer", "repairer_layer", "repairer_head"]));
    let repairer = ["subset", "repairer", "repairer_layer", "repairer_head"];
    agrees("repair_graph", &with(&["ablation", "hold", "component", "layer", "head"], &repairer));
    agrees("neuron_repairs", &with(&ROW, &["neuron_layer", "rank"]));
    agrees("neuron_totals", &with(&ROW, &["neuron_layer"]));
    agrees("neuron_curves", &["ablation", "layer", "head", "neuron_layer", "rank"]);
    agrees("self_additions", &["layer", "head", "added", "multiple", "prompt", "position"]);
    agrees("stream_additions", &["layer", "head", "added_at", "multiple", "prompt", "position"]);
    agrees("head_similarity", &["layer", "head", "other_layer", "other_head"]);
    agrees("distributions", &ROW);
}

#[test]
fn a_tiny_llama() {
    let components = [
        "ablation.heads=[\"L0H0\", \"L1H0\", \"L2H2\"]",
        "ablation.mlps=[\"L0\"]",
        "ablation.attention=[\"L1-2\"]",
        "ablation.blocks=[\"L0\"]",
        "neurons.layers=[\"L1-2\"]",
    ];
    assert_extended_agrees(Path::new(TINY), &Path::new(TINY).join("extended"), &components);
}

/// A family's checkpoint beside the tokenizer that its expected values were made with.
fn assert_family_agrees(name: &str, components: &[&str]) {
    let fixture = Path::new("tests/fixtures/families").join(name);
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(fixture.join(file), dir.path().join(file)).unwrap();
    }
    fs::copy(Path::new(TINY).join("tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    assert_extended_agrees(dir.path(), &fixture.join("extended"), components);
}

#[test]
fn layer_norms_and_biases() {
    let components = [
        "ablation.heads=[\"L0H0\", \"L1H0\", \"L2H3\"]",
        "ablation.mlps=[\"L1\"]",
        "ablation.attention=[\"L0\"]",
        "ablation.blocks=[\"L1-2\"]",
    ];
    assert_family_agrees("gpt2", &components);
}

const OF_THREE_LAYERS: [&str; 4] = [
    "ablation.heads=[\"L0H1\", \"L1H3\", \"L2H2\"]",
    "ablation.mlps=[\"L1\"]",
    "ablation.attention=[\"L1\"]",
    "ablation.blocks=[\"L1\"]",
];

#[test]
fn biases_of_scores_in_place_of_positions() {
    assert_family_agrees("bloom", &OF_THREE_LAYERS);
}

#[test]
fn multipliers() {
    assert_family_agrees("granite", &OF_THREE_LAYERS);
}

#[test]
fn mixtures_of_experts() {
    let components = [&OF_THREE_LAYERS[..], &["neurons.layers=[\"L1-2\"]"]].concat();
    assert_family_agrees("qwen2_moe", &components);
}

#[test]
fn mixtures_of_experts_with_biases_and_attention_sinks() {
    assert_family_agrees("gpt_oss", &OF_THREE_LAYERS);
}

#[test]
fn norms_on_what_parts_write() {
    let components = [
        "ablation.heads=[\"L0H3\", \"L1H2\", \"L2H2\"]",
        "ablation.mlps=[\"L1-2\"]",
        "ablation.attention=[\"L1\"]",
        "ablation.blocks=[\"L1\"]",
        "neurons.layers=[\"L1-2\"]",
    ];
    assert_family_agrees("gemma2", &components);
}

#[test]
fn norms_on_what_parts_write_alone_and_biases() {
    let components = [
        "ablation.heads=[\"L0H3\", \"L1H3\", \"L2H3\"]",
        "ablation.mlps=[\"L1-2\"]",
        "ablation.attention=[\"L1\"]",
        "ablation.blocks=[\"L1\"]",
    ];
    assert_family_agrees("olmo2", &components);
}

#[test]
fn parallel_blocks() {
    let components = [
        "ablation.heads=[\"L0H1\", \"L1H3\", \"L2H2\"]",
        "ablation.mlps=[\"L1-2\"]",
        "ablation.attention=[\"L1\"]",
        "ablation.blocks=[\"L1\"]",
    ];
    assert_family_agrees("gpt_neox", &components);
}

#[test]
fn a_prompt_set_with_answers() {
    let dir = tempfile::tempdir().unwrap();
    let settings = [
        "model.source=tests/fixtures/tiny-llama",
        "corpus.source=tests/fixtures/prompts.jsonl",
        "corpus.mode=prompts",
        "corpus.prompt_len=16",
        "ablation.heads=all",
        "ablation.kinds=[\"mean\", \"zero\"]",
        "ablation.mlps=all",
        "ablation.attention=all",
        "ablation.blocks=all",
    ];
    succeeded(run("all", dir.path(), &settings));
    let expected = Path::new(TINY).join("prompts");
    assert_agrees(dir.path(), &expected, "tokens", &["prompt", "position"]);
    let targets = [read(&dir.path().join("tables/targets")), read(&expected.join("targets.parquet"))];
    let key = ["prompt", "position", "answer", "wrong"];
    assert_eq!(index(&targets[0], &key), index(&targets[1], &key));
    assert_agrees(dir.path(), &expected, "clean", &["prompt", "position"]);
    assert_agrees(dir.path(), &expected, "direct_effects", &["component", "layer", "head", "prompt", "position"]);
    assert_agrees(dir.path(), &expected, "ablations", &ROW);
}

#[test]
fn partners_in_a_prompt_set_have_the_same_length() {
    let dir = tempfile::tempdir().unwrap();
    let settings = [
        "model.source=tests/fixtures/tiny-llama",
        "corpus.source=tests/fixtures/prompts.jsonl",
        "corpus.mode=prompts",
        "corpus.prompt_len=16",
        "ablation.heads=all",
    ];
    succeeded(run("ablate", dir.path(), &settings));
    let tokens = read(&dir.path().join("tables/tokens"));
    let lengths = numbers(&tokens, "prompt").into_iter().fold(std::collections::BTreeMap::new(), |mut m, p| {
        *m.entry(p as usize).or_insert(0) += 1;
        m
    });
    let pairs = read(&dir.path().join("tables/pairs"));
    let (prompts, partners) = (numbers(&pairs, "prompt"), numbers(&pairs, "partner"));
    assert_eq!(prompts.len(), 10);
    for (p, q) in prompts.into_iter().zip(partners) {
        assert!(p != q && lengths[&(p as usize)] == lengths[&(q as usize)], "{p} with {q}");
    }
}

#[test]
fn bad_prompt_sets_are_named_with_the_row() {
    let dir = tempfile::tempdir().unwrap();
    let error = |rows: &str, more: &[&str]| {
        let file = dir.path().join("set.jsonl");
        fs::write(&file, rows).unwrap();
        let source = format!("corpus.source={}", file.display());
        let settings = ["model.source=tests/fixtures/tiny-llama", &source, "corpus.mode=prompts"];
        let out = dir.path().join("out");
        failed(run("ablate", &out, &[&settings[..], &["corpus.prompt_len=16", "ablation.heads=all"], more].concat()))
    };
    let two_tokens = error("{\"text\": \"The rain\", \"answer\": \" library station\"}\n", &[]);
    assert!(two_tokens.contains("row 1") && two_tokens.contains("must be one token"), "{two_tokens}");
    let outside = error("\n{\"text\": \"The rain\", \"answer\": \" library\", \"position\": 99}\n", &[]);
    assert!(outside.contains("row 2") && outside.contains("position 99 is outside"), "{outside}");
    assert!(error("{\"answer\": \"x\"}", &[]).contains("no key `text`"));
    let empty = error("", &[]);
    assert!(empty.contains(".jsonl: the prompt set has no rows"), "{empty}");
    let long = error(&format!("{{\"text\": \"{}\", \"answer\": \" library\"}}", "rain ".repeat(40)), &[]);
    assert!(long.contains("more than corpus.prompt_len = 16"), "{long}");
    let same = error("{\"text\": \"The rain\", \"answer\": \" library\", \"wrong\": \" library\"}", &[]);
    assert!(same.contains("the same token"), "{same}");
    let alone = error("{\"text\": \"The rain\", \"answer\": \" library\"}", &[]);
    assert!(alone.contains("at least 2 prompts of equal length"), "{alone}");
}

#[test]
fn a_real_model_names_the_indirect_object() {
    let dir = tempfile::tempdir().unwrap();
    let made = pipeline().args(["prompts", "ioi", "--count", "24"]).output().unwrap();
    let file = dir.path().join("ioi.jsonl");
    fs::write(&file, succeeded(made)).unwrap();
    let source = format!("corpus.source={}", file.display());
    let settings = [&source, "ablation.heads=[\"L27\"]", "ablation.kinds=zero", "analysis.top_fraction=0.25"];
    let mut command = pipeline();
    command.args(["run", "all", "--config", "pipeline/ioi.toml", "--out"]).arg(dir.path().join("out"));
    for setting in [&settings[..], &["ablation.mlps=[]", "ablation.attention=[]", "ablation.hold=[]"]].concat() {
        command.args(["--set", setting]);
    }
    succeeded(command.output().unwrap());
    let clean = numbers(&read(&dir.path().join("out/tables/clean")), "logit");
    assert_eq!(clean.len(), 24, "one measured position a prompt");
    // A model that did not know the task would be right half of the time.
    assert!(clean.iter().filter(|&&difference| difference > 0.0).count() >= 18, "{clean:?}");
}
