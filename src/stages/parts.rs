//! The named inputs of each stage's fingerprint. `status` and `--dry-run` compare them to say why a stage is stale.

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use selfrepair_core::config::Config;
use selfrepair_core::provenance::MEASUREMENT_VERSION;
use selfrepair_core::tables::SCHEMA_VERSION;
use selfrepair_query::analyze;
use selfrepair_report as report;
use selfrepair_store::run_folder::Parts;

/// The parts of every stage, in the order of [`selfrepair_store::run_folder::Stage`]; a stage's fingerprint is the hash of its list.
pub fn parts(config: &Config, model_sha256: &str, corpus_sha256: &[String]) -> Result<[Parts; 6]> {
    let mut code = Parts::new();
    code.insert("schema version".into(), SCHEMA_VERSION.into());
    code.insert("measurement version".into(), MEASUREMENT_VERSION.to_string());
    code.insert("model's checksum".into(), model_sha256.into());

    let mut corpus = code.clone();
    corpus.insert("corpus' checksum".into(), corpus_sha256.join(", "));
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

/// A section of the configuration as `section.key` → value, as in `--set`. Keys without a value are left out.
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
