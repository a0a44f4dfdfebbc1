//! `docs/models.md`: which models are supported, how near to transformers, and which are refused.
//!
//! `PIPELINE_WRITE_AGREEMENT=1 cargo test --release families` writes what it finds to `src/model/agreement.json`, and then
//! `PIPELINE_WRITE_AGREEMENT=1 cargo test --release models` the page.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::sync::Mutex;

use selfrepair_model::agreement::{Agreement, parse};
use selfrepair_model::{GGUF_ARCHITECTURES, unsupported};

use crate::support::*;

const PUBLISHED: &str = "src/model/agreement.json";
const PAGE: &str = "docs/models.md";

/// Tests of families run at once.
static WRITING: Mutex<()> = Mutex::new(());

fn is_writing() -> bool {
    std::env::var_os("PIPELINE_WRITE_AGREEMENT").is_some()
}

pub fn published() -> Vec<Agreement> {
    parse(&fs::read_to_string(PUBLISHED).unwrap()).unwrap()
}

/// Two digits, upwards.
fn rounded(x: f64) -> f64 {
    let unit = 10f64.powi(x.log10().floor() as i32 - 1);
    format!("{:.1e}", (x / unit).ceil() * unit).parse().unwrap()
}

/// What was found on a checkpoint is what is published, but for the rounding of another processor.
pub fn check_agreement(checkpoint: &str, logits: f64, effects: f64) {
    let _writing = WRITING.lock().unwrap_or_else(|e| e.into_inner());
    let mut all = published();
    let of = all.iter_mut().find(|of| of.checkpoint == checkpoint);
    let of = of.unwrap_or_else(|| panic!("{PUBLISHED} has no checkpoint {checkpoint}"));
    if is_writing() {
        let config = fs::read_to_string(Path::new("tests/fixtures/families").join(checkpoint).join("config.json"));
        let config: serde_json::Value = serde_json::from_str(&config.unwrap()).unwrap();
        of.transformers = config["transformers_version"].as_str().unwrap().to_string();
        (of.logits, of.effects) = (rounded(logits), rounded(effects));
        let lines: Vec<String> = all.iter().map(|of| format!("  {}", serde_json::to_string(of).unwrap())).collect();
        fs::write(PUBLISHED, format!("[\n{}\n]\n", lines.join(",\n"))).unwrap();
        return;
    }
    for (what, found, published) in [("logits", logits, of.logits), ("effects", effects, of.effects)] {
        assert!(
            found <= 10.0 * published,
            "{checkpoint}: {what} differ from those of transformers by {found:e}, not by {published:e} as {PUBLISHED} says"
        );
    }
}

fn page() -> String {
    let mut page = String::from(INTRODUCTION);
    page.push_str("| `model_type` | checkpoint | what is special | transformers | logits | effects | GGUF |\n");
    page.push_str("| --- | --- | --- | --- | --- | --- | --- |\n");
    for Agreement { checkpoint, model_type, special, transformers, logits, effects } in published() {
        // What cannot be in a GGUF file has no fixture there.
        let is_tested = Path::new("tests/fixtures/gguf").join(format!("{checkpoint}.gguf")).is_file();
        let gguf = GGUF_ARCHITECTURES.iter().find(|(_, of)| is_tested && *of == model_type);
        let gguf = gguf.map_or("", |(arch, _)| arch);
        writeln!(
            page,
            "| `{model_type}` | {checkpoint} | {special} | {transformers} | {logits:.1e} | {effects:.1e} | {gguf} |"
        )
        .unwrap();
    }
    page.push_str(REFUSED);
    page.push_str("| why | `model_type` |\n| --- | --- |\n");
    for of in unsupported() {
        let names: Vec<String> = of.model_types.iter().map(|name| format!("`{name}`")).collect();
        writeln!(page, "| {} | {} |", of.reason, names.join(", ")).unwrap();
    }
    page
}

const INTRODUCTION: &str = "# Models

<!-- Generated: PIPELINE_WRITE_AGREEMENT=1 cargo test --release models -->

A model can be measured if its family (`model_type` in `config.json`) is in the first table. `pipeline model SOURCE` says
what a run of it needs.

## Supported

A family is supported if it agrees with Hugging Face transformers. Each row is a checkpoint with random weights and all
the settings of its family or variant. The expected values come from transformers in float64, with hooks
([`tests/reference/families.py`](../tests/reference/families.py)): logits; direct effects of all components; and all
columns of `ablations` for four heads by `resample`, `mean` and `zero`.

- *logits*: the largest difference of a logit.
- *effects*: the largest difference in a column, over the largest value of the column (or 1).
- *GGUF*: the architecture in GGUF files that are read too. The tokenizer is read from the file, but for Gemma's.

A key of the configuration does what it does in transformers, or is refused by its name. `tests/suite/config_keys.rs`
tests more than 300 changes of each of these configurations.

Attn-only, gelu and SoLU models in TransformerLens's own format (`config.json` without a `model_type`, `*final.pth`) are
supported too. They agree with a GPT-2 of the same weights, whose logits are TransformerLens's
([`tests/reference/lens.py`](../tests/reference/lens.py)). A block without an MLP has one that writes nothing.
Neurons of SoLU models are those after the norm in the MLP (`hook_post`). The tokenizer is another repository's (`tokenizer_name`): put its `tokenizer.json` beside the weights, and name its BOS with
`corpus.bos_token`.

";

const REFUSED: &str = "
## Refused

These are refused before anything is computed. Other architectures that are not in the first table are refused by their
name, and variants of a family by the key of the configuration that says so, such as `do_layer_norm_before` = false
(OPT-350M, which normalizes the stream itself).

";

#[test]
fn the_page_is_current() {
    let page = page();
    if is_writing() {
        fs::write(PAGE, page).unwrap();
        return;
    }
    assert_eq!(
        fs::read_to_string(PAGE).unwrap(),
        page,
        "{PAGE} is out of date: PIPELINE_WRITE_AGREEMENT=1 cargo test --release models"
    );
}

#[test]
fn the_program_says_how_near_a_checkpoint_s_family_is() {
    let said = succeeded(pipeline().args(["model", TINY]).output().unwrap());
    assert!(said.contains("agreement     with transformers 5.23.0 on checkpoints of llama"), "{said}");
}
