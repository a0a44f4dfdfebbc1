//! `pipeline status`: which stages are current, why others are not, and which files the folder holds.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use arrow::temporal_conversions::timestamp_s_to_datetime;

use crate::stages::{self, Prepared};
use selfrepair_core::config::Config;
use selfrepair_core::own_files;
use selfrepair_core::plain::{shell_word, visible};
use selfrepair_core::progress;
use selfrepair_query::catalog;
use selfrepair_query::catalog::thousands;
use selfrepair_store::checksums::damaged;
use selfrepair_store::locks;
use selfrepair_store::pieces;
use selfrepair_store::records;
use selfrepair_store::run_folder;
use selfrepair_store::run_folder::{Inputs, Manifest, Parts, STAGES, Stage, has_size, manifest};

/// Whether a stage's files are what they should be.
#[derive(Debug, PartialEq)]
pub enum State {
    /// It has not started.
    NotRun,
    /// It was started and not finished; it can be resumed.
    Incomplete,
    /// Some of its files are missing or have another size.
    Damaged(Vec<String>),
    /// Some of its files have changed since they were written.
    Corrupt(Vec<String>),
    /// It was made from other inputs; the reasons.
    Stale(Vec<String>),
    Current,
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            State::NotRun => "not run",
            State::Incomplete => "incomplete",
            State::Damaged(_) | State::Corrupt(_) => "damaged",
            State::Stale(_) => "stale",
            State::Current => "current",
        }
    }

    /// Why the stage has to run.
    pub fn why(&self) -> String {
        match self {
            State::NotRun => "it has not run yet".to_string(),
            State::Incomplete => "it was not finished".to_string(),
            State::Damaged(files) => format!("{} missing or of another size", few(files)),
            State::Corrupt(files) => format!("{} changed since it was written", few(files)),
            State::Stale(reasons) => few(reasons),
            State::Current => String::new(),
        }
    }
}

/// Compares a stage with what it would be made from now, or, without that, with the inputs of the stages before it.
pub fn state(root: &Path, stage: Stage, wanted: Option<&Inputs>) -> State {
    let Some(found) = manifest(root, stage) else { return State::NotRun };
    let reasons = match wanted {
        Some(wanted) if found.fingerprint == wanted.fingerprint => Vec::new(),
        Some(wanted) => differences(&found.parts, &wanted.parts),
        None => disagreements(root, stage, &found),
    };
    if !reasons.is_empty() {
        return State::Stale(reasons);
    }
    if !found.complete {
        return State::Incomplete;
    }
    let damaged = found.files.iter().filter(|file| !has_size(root, file));
    let damaged: Vec<String> = damaged.map(|(file, _)| file.clone()).collect();
    if damaged.is_empty() { State::Current } else { State::Damaged(damaged) }
}

/// What differs: `corpus.tokens 4096 → 8192`.
fn changes(before: &Parts, now: &Parts) -> Vec<String> {
    let keys: std::collections::BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    let value = |parts: &Parts, key: &str| parts.get(key).map_or("(default)".to_string(), |value| shown(value));
    keys.into_iter()
        .filter(|key| before.get(*key) != now.get(*key))
        .map(|key| format!("{key} {} → {}", value(before, key), value(now, key)))
        .collect()
}

/// A value as text; a checksum is shortened.
fn shown(value: &str) -> String {
    match value.len() == 64 && value.bytes().all(|b| b.is_ascii_hexdigit()) {
        true => value.chars().take(12).collect(),
        false => value.to_string(),
    }
}

/// Why a stage that was made from `before` is not current for `now`.
pub fn differences(before: &Parts, now: &Parts) -> Vec<String> {
    if before.is_empty() {
        return vec!["made by a version of this program that did not record its inputs".to_string()];
    }
    match changes(before, now) {
        none if none.is_empty() => vec!["what it depends on has changed".to_string()],
        changed => changed,
    }
}

/// The inputs of a stage that differ from those of the stages before it.
fn disagreements(root: &Path, stage: Stage, found: &Manifest) -> Vec<String> {
    let mut out = Vec::new();
    let measured = pieces::coverage(root).unwrap_or_default().lines().join("; ");
    if let Some(before) = found.parts.get("measured").filter(|before| **before != measured) {
        out.push(format!("measured {} → {measured}", shown(before)));
    }
    for earlier in STAGES.iter().filter(|s| **s < stage).filter_map(|s| manifest(root, *s)) {
        let shared: Parts = earlier.parts.into_iter().filter(|(key, _)| found.parts.contains_key(key)).collect();
        let mine = found.parts.iter().filter(|(key, _)| shared.contains_key(*key));
        for change in changes(&mine.map(|(k, v)| (k.clone(), v.clone())).collect(), &shared) {
            if !out.contains(&change) {
                out.push(change);
            }
        }
    }
    out
}

/// The first three, and how many more.
fn few(items: &[String]) -> String {
    match items.split_at_checked(3) {
        Some((first, rest)) if !rest.is_empty() => format!("{}, and {} more", first.join(", "), rest.len()),
        _ => items.join(", "),
    }
}

/// Reads every file of a stage that looks current.
fn verify(root: &Path, stage: Stage, state: State) -> State {
    let files = manifest(root, stage).map(|m| m.files).unwrap_or_default();
    match state {
        State::Current => Some(damaged(root, stage, &files)).filter(|d| !d.is_empty()).map_or(state, State::Corrupt),
        other => other,
    }
}

/// The stages of a run as text; compared with `config`, if one is given, and with their checksums on request.
pub fn status(out: &Path, config: Option<Config>, checksums: bool) -> Result<String> {
    ensure!(
        out.join("stages").is_dir(),
        "{} is not a run; `pipeline run all --out {}` makes one",
        out.display(),
        shell_word(&out.display().to_string())
    );
    run_folder::check(out)?;
    let wanted = config.map(Prepared::of).transpose()?;
    let mut text = String::new();
    if let Some(wanted) = &wanted {
        contradictions(&mut text, out, wanted)?;
    }
    if !locks::holders(out)?.is_empty() {
        writeln!(text, "a run is active in {}\n", visible(&locks::named(out)))?;
    }
    writeln!(text, "{:8} {:10} {:>7} {:>13} {:>9} {:>9}  finished", "stage", "state", "files", "rows", "size", "time")?;
    for stage in STAGES {
        let inputs = wanted.as_ref().map(|wanted| wanted.inputs(stage, out)).transpose()?;
        let mut state = state(out, stage, inputs.as_ref());
        if checksums {
            state = verify(out, stage, state);
        }
        match manifest(out, stage) {
            Some(found) => row(&mut text, out, stage, &state, &found)?,
            None => writeln!(text, "{:8} {}", stage.name(), state.name())?,
        }
        if stage == Stage::Ablate {
            measured(&mut text, out, wanted.as_ref())?;
        }
    }
    foreign(&mut text, out, checksums)?;
    Ok(text)
}

/// Why a request would be refused.
fn contradictions(text: &mut String, out: &Path, wanted: &Prepared) -> Result<()> {
    let differ = stages::contradictions(out, &wanted.identity);
    if !differ.is_empty() {
        writeln!(text, "contradicts the run that is here: {}", visible(&differ.join(", ")))?;
        writeln!(text, "a run of this configuration needs another --out, or --replace\n")?;
    }
    Ok(())
}

/// What is measured, what was begun, and what would be added.
fn measured(text: &mut String, out: &Path, wanted: Option<&Prepared>) -> Result<()> {
    let coverage = pieces::coverage(out)?;
    for line in coverage.lines() {
        writeln!(text, "{:8} {line}", "")?;
    }
    let aside = out.join(own_files::REPLACEMENT);
    if run_folder::is_run(&aside) {
        writeln!(text, "{:8} a replacement that was begun in {}: --replace goes on with it", "", aside.display())?;
    }
    let identity = manifest(out, Stage::Ablate).map(|m| m.fingerprint).unwrap_or_default();
    for open in pieces::open(out, &identity)? {
        let (what, done) = (stages::named(std::slice::from_ref(&open.holds)), pieces::done_shards(out, &open)?);
        writeln!(text, "{:8} unfinished, {done} shards done: {what}", "")?;
    }
    if let Some(wanted) = wanted {
        let missing = coverage.missing(&wanted.request)?;
        if !missing.is_empty() {
            writeln!(text, "{:8} would be added: {}", "", stages::named(&missing))?;
        }
    }
    Ok(())
}

/// Foreign files, which no reader takes: the first few, or all.
fn foreign(text: &mut String, out: &Path, all: bool) -> Result<()> {
    let foreign = records::foreign(out)?;
    // They may have any name, also one of several lines.
    let shown = |p: &PathBuf| visible(&p.strip_prefix(out).unwrap_or(p).to_string_lossy()).into_owned();
    let names: Vec<String> = foreign.iter().map(shown).collect();
    match (names.is_empty(), all) {
        (true, _) => {}
        (_, true) => writeln!(text, "\nnot written by this run, and not read:\n  {}", names.join("\n  "))?,
        _ => writeln!(text, "\nnot written by this run, and not read: {}", few(&names))?,
    }
    Ok(())
}

fn row(text: &mut String, out: &Path, stage: Stage, state: &State, found: &Manifest) -> Result<()> {
    let (mut rows, mut bytes, mut files) = (0, 0, 0);
    for folder in &found.folders {
        let paths = records::files_in(out, stage, &out.join(folder))?;
        files += paths.len();
        bytes += paths.iter().map(|path| fs::metadata(path).map_or(0, |m| m.len())).sum::<u64>();
        // A corrupt file has no rows.
        rows += catalog::rows(&paths).unwrap_or(0);
    }
    writeln!(
        text,
        "{:8} {:10} {files:>7} {:>13} {:>9} {:>9}  {}",
        stage.name(),
        state.name(),
        if rows > 0 { thousands(rows) } else { String::new() },
        progress::bytes(bytes),
        found.seconds.map_or(String::new(), progress::seconds),
        found.finished.map_or(String::new(), date),
    )?;
    if !matches!(state, State::Current | State::NotRun) {
        writeln!(text, "{:8} {}", "", visible(&state.why()))?;
    }
    for warning in &found.warnings {
        writeln!(text, "{:8} warning: {}", "", visible(warning))?;
    }
    Ok(())
}

/// `2026-11-23 14:05 UTC` of seconds since 1970. Nothing, if no calendar goes so far.
fn date(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(timestamp_s_to_datetime);
    time.map_or(String::new(), |time| time.format("%Y-%m-%d %H:%M UTC").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(date(1_795_399_500), "2026-11-23 02:05 UTC");
        assert_eq!([date(u64::MAX), date(1 << 62)], ["", ""]);
    }

    #[test]
    fn changes_name_the_key_and_both_values() {
        let parts = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let (before, now): (Parts, Parts) =
            (parts(&[("corpus.tokens", "4096"), ("seed", "0")]), parts(&[("corpus.tokens", "8192"), ("seed", "0")]));
        assert_eq!(changes(&before, &now), ["corpus.tokens 4096 → 8192"]);
        assert_eq!(differences(&now, &now), ["what it depends on has changed"]);
        assert_eq!(changes(&parts(&[]), &parts(&[("x", "1")])), ["x (default) → 1"]);
    }
}
