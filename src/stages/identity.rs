//! What a run folder is bound to, and what its derived stages depend on. A request that contradicts the identity of the
//! run in its folder is refused before anything is changed.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use selfrepair_core::config::{Config, Mode};
use selfrepair_core::own_files;
use selfrepair_core::pieces::{Coverage, Piece, PieceText};
use selfrepair_core::progress;
use selfrepair_core::provenance::MEASUREMENT_VERSION;
use selfrepair_core::tables::SCHEMA_VERSION;
use selfrepair_query::analyze;
use selfrepair_query::catalog::{self, thousands};
use selfrepair_report as report;
use selfrepair_store::pieces;
use selfrepair_store::records;
use selfrepair_store::run_folder::{Inputs, Manifest, Parts, STAGES, Stage, manifest};
use serde::Serialize;
use serde_json::Value;

use crate::status::differences;

/// The stages that measure. Their files belong to one identity.
const MEASURING: [Stage; 4] = [Stage::Corpus, Stage::Export, Stage::Trace, Stage::Ablate];

const SCHEMA: &str = "schema version";
const MEASUREMENT: &str = "measurement version";

/// The identity of a run: one model, one corpus and its cut, and everything else that its numbers have in common. Inputs
/// are known by their bytes, not by their paths.
pub fn identity(config: &Config, model_sha256: &str, corpus_sha256: &[String]) -> Result<Inputs> {
    let mut parts = Parts::new();
    parts.insert(SCHEMA.into(), SCHEMA_VERSION.into());
    parts.insert(MEASUREMENT.into(), MEASUREMENT_VERSION.to_string());
    parts.insert("model's checksum".into(), model_sha256.into());
    parts.insert("corpus' checksum".into(), corpus_sha256.join(", "));
    let corpus = &config.corpus;
    add(&mut parts, "corpus", corpus)?;
    parts.remove("corpus.source");
    if corpus.mode == Mode::Prompts {
        // Nothing is cut to that number.
        parts.remove("corpus.tokens");
    }
    add(&mut parts, "ablation.seed", &config.ablation.seed)?;
    add(&mut parts, "ablation.resample", &config.ablation.resample)?;
    add(&mut parts, "runtime.precision", &config.runtime.precision)?;
    add(&mut parts, "neurons.top_k", &config.neurons.top_k)?;
    add(&mut parts, "analysis.top_fraction", &config.analysis.top_fraction)?;
    Inputs::of(parts)
}

/// What `analyze` depends on: the identity, what is measured, and its own settings and queries.
pub fn of_analysis(config: &Config, identity: &Inputs, root: &Path) -> Result<Inputs> {
    let finished = pieces::finished(root)?;
    let coverage = Coverage::of(finished.iter().map(|(_, piece)| piece));
    let texts: Vec<&PieceText> = finished.iter().map(|(record, _)| &record.piece).collect();
    let mut parts = identity.parts.clone();
    parts.insert("measured".into(), coverage.lines().join("; "));
    parts.insert("pieces".into(), selfrepair_core::files::fingerprint(&texts)?);
    add(&mut parts, "analysis", &config.analysis)?;
    parts.insert("text of the queries".into(), analyze::queries_fingerprint(&config.analysis)?);
    Inputs::of(parts)
}

/// What `report` depends on.
pub fn of_report(analysis: &Inputs) -> Result<Inputs> {
    let mut parts = analysis.parts.clone();
    parts.insert("report version".into(), report::VERSION.to_string());
    Inputs::of(parts)
}

/// Everything that processes of one shared run must agree on.
pub fn of_request(config: &Config, identity: &Inputs, request: &Piece) -> Result<Parts> {
    let mut parts = identity.parts.clone();
    add(&mut parts, "ablation", &config.ablation)?;
    add(&mut parts, "neurons", &config.neurons)?;
    add(&mut parts, "iterative", &config.iterative)?;
    add(&mut parts, "trace", &config.trace)?;
    add(&mut parts, "analysis", &config.analysis)?;
    parts.insert("text of the queries".into(), analyze::queries_fingerprint(&config.analysis)?);
    parts.insert("ablated".into(), Coverage::of([request]).lines().join("; "));
    Ok(parts)
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

/// What the run in a folder is bound to; `None` if nothing was begun there.
fn recorded(root: &Path) -> Option<Parts> {
    let sound = |stage: &Stage| records::sound_manifest(root, *stage).ok().flatten();
    // A record with other versions may be of another program; one with the same is corrupt.
    let ours = [(SCHEMA, SCHEMA_VERSION.to_string()), (MEASUREMENT, MEASUREMENT_VERSION.to_string())];
    let is_foreign = |m: &Manifest| ours.iter().any(|(key, version)| m.parts.get(*key) != Some(version));
    let foreign = || MEASURING.iter().filter_map(|&stage| manifest(root, stage)).find(is_foreign);
    MEASURING.iter().find_map(sound).or_else(foreign).map(|m| m.parts)
}

/// Whether something in the folder is finished, which binds it to its identity.
pub fn is_bound(root: &Path) -> bool {
    STAGES.iter().any(|&stage| manifest(root, stage).is_some_and(|m| m.complete))
}

/// How a request differs from the identity of the run in its folder. Empty if it does not, or nothing is there.
pub fn contradictions(root: &Path, identity: &Inputs) -> Vec<String> {
    let Some(found) = recorded(root) else { return vec![] };
    if found == identity.parts {
        return vec![];
    }
    // Another version's names may mean something else.
    let of_version = |key: &str, what: &str| {
        let of = |parts: &Parts| parts.get(key).map_or("(none)", String::as_str).to_string();
        let (was, is) = (of(&found), of(&identity.parts));
        (was != is).then(|| format!("{what} {was} → {is}: another version of this program made it"))
    };
    let versions = [of_version(SCHEMA, SCHEMA), of_version(MEASUREMENT, MEASUREMENT)];
    match versions.into_iter().flatten().collect::<Vec<_>>() {
        none if none.is_empty() => differences(&found, &identity.parts),
        versions => versions,
    }
}

/// # Errors
/// If the run in the folder contradicts the request: says what differs, what is there, and what can be done.
pub fn refuse_contradiction(root: &Path, identity: &Inputs) -> Result<()> {
    let differ = contradictions(root, identity);
    if differ.is_empty() || !is_bound(root) {
        return Ok(());
    }
    bail!(
        "{} holds a run that this request contradicts: {}\n  it has {}\n  nothing was changed; choose another folder \
         (--out {}), or replace it with --replace: the old results are removed when the new ones are complete",
        root.display(),
        differ.join(", "),
        inventory(root)?,
        another(root).display()
    )
}

/// A folder beside this one that is not there: `out-2`.
fn another(root: &Path) -> PathBuf {
    let name = root.file_name().map_or("out".into(), |name| name.to_string_lossy().into_owned());
    let numbered = (2..).map(|n| root.with_file_name(format!("{name}-{n}")));
    numbered.into_iter().find(|path| path.symlink_metadata().is_err()).unwrap_or_default()
}

/// What a run has: `resample: 90 heads (layers 20 to 29); 365,760 rows of ablations; 1 min 24 s of work`.
pub fn inventory(root: &Path) -> Result<String> {
    let coverage = pieces::coverage(root).unwrap_or_default();
    let mut text = coverage.lines().join("; ");
    if text.is_empty() {
        let done: Vec<&str> =
            STAGES.iter().filter(|&&s| manifest(root, s).is_some_and(|m| m.complete)).map(|s| s.name()).collect();
        write!(text, "the finished stages {}", done.join(", "))?;
    }
    let manifests = || STAGES.iter().filter_map(|&stage| manifest(root, stage));
    let is_of_ablations = |name: &&(String, u64)| name.0.starts_with("tables/ablations/");
    let files: Vec<PathBuf> = manifests()
        .flat_map(|m| m.files.iter().filter(is_of_ablations).map(|f| root.join(&f.0)).collect::<Vec<_>>())
        .collect();
    match catalog::rows(&files).unwrap_or(0) {
        0 => {}
        rows => write!(text, "; {} rows of ablations", thousands(rows))?,
    }
    let seconds: f64 = manifests().filter_map(|m| m.seconds).sum();
    write!(text, "; {} of work", progress::seconds(seconds))?;
    Ok(text)
}

/// What a run that starts over would remove; `None` if nothing is finished there.
///
/// # Errors
/// If the folder cannot be a run's.
pub fn what_would_be_lost(root: &Path) -> Result<Option<String>> {
    selfrepair_store::run_folder::check(root)?;
    let aside = root.join(own_files::REPLACEMENT);
    let replacement = is_bound(&aside).then(|| inventory(&aside)).transpose().context("in the replacement")?;
    let found = is_bound(root).then(|| inventory(root)).transpose().context("in the run folder")?;
    Ok(match (found, replacement) {
        (Some(found), Some(other)) => Some(format!("{found}; and a replacement for it, with {other}")),
        (found, replacement) => found.or(replacement),
    })
}
