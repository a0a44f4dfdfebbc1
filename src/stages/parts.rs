//! What each stage's fingerprint is made of, by name, so that `status` and `--dry-run` can say why a stage is stale.

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use crate::analyze;
use crate::config::Config;
use crate::report;
use crate::run_folder::Parts;
use crate::tables::SCHEMA_VERSION;

/// The parts of every stage, in the order of [`crate::run_folder::Stage`]; each lists what `Prepared::of` hashes.
pub fn parts(config: &Config, model_sha256: &str, corpus_sha256: &[String]) -> Result<[Parts; 6]> {
    let mut code = Parts::new();
    code.insert("schema version".into(), SCHEMA_VERSION.into());
    code.insert("program version".into(), env!("CARGO_PKG_VERSION").into());
    code.insert("model's checksum".into(), short(model_sha256));

    let mut corpus = code.clone();
    corpus.insert("corpus' checksum".into(), corpus_sha256.iter().map(|s| short(s)).collect::<Vec<_>>().join(", "));
    add(&mut corpus, "corpus", &config.corpus)?;
    let mut export = code;
    add(&mut export, "model", &config.model)?;
    add(&mut export, "corpus.prompt_len", &config.corpus.prompt_len)?;
    let mut trace = corpus.clone();
    add(&mut trace, "trace", &config.trace)?;
    add(&mut trace, "runtime.precision", &config.runtime.precision)?;
    let mut ablate = corpus.clone();
    add(&mut ablate, "ablation", &config.ablation)?;
    add(&mut ablate, "runtime.precision", &config.runtime.precision)?;
    add(&mut ablate, "neurons", &config.neurons)?;
    add(&mut ablate, "iterative", &config.iterative)?;
    add(&mut ablate, "analysis.top_fraction", &config.analysis.top_fraction)?;
    let mut analyze = ablate.clone();
    add(&mut analyze, "analysis", &config.analysis)?;
    analyze.insert("text of the queries".into(), analyze::queries_fingerprint(&config.analysis)?);
    let mut report = analyze.clone();
    report.insert("report version".into(), report::VERSION.to_string());
    Ok([corpus, export, trace, ablate, analyze, report])
}

fn short(checksum: &str) -> String {
    checksum.chars().take(12).collect()
}

/// A section of the configuration as `section.key` → value, as `--set` would write it. What is not set has no part.
fn add(parts: &mut Parts, name: &str, value: &impl Serialize) -> Result<()> {
    flatten(parts, name, &serde_json::to_value(value)?);
    Ok(())
}

fn flatten(parts: &mut Parts, name: &str, value: &Value) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, value)| flatten(parts, &format!("{name}.{key}"), value)),
        Value::Null => {}
        Value::String(text) if !text.is_empty() => {
            parts.insert(name.to_string(), text.clone());
        }
        value => {
            parts.insert(name.to_string(), value.to_string());
        }
    }
}
