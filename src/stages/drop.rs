//! `pipeline drop`: removes a part of what a run has measured.

use std::path::Path;

use super::replace;
use anyhow::{Context, Result, bail, ensure};
use selfrepair_core::additions;
use selfrepair_core::components::{Ablatable, Component};
use selfrepair_core::pieces::{Ablation, Coverage, Piece};
use selfrepair_store::pieces;
use selfrepair_store::records;
use selfrepair_store::run_folder::{self, Inputs, RunFolder, Stage, manifest};

/// What is dropped.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// Ablations with all of these parts of the key.
    Ablations(Vec<Condition>),
    /// Additions to the stream.
    Additions,
    /// Pieces that were begun and not finished.
    Unfinished,
}

/// A part of the key of `ablations`.
#[derive(Debug, Clone, PartialEq)]
pub enum Condition {
    Ablation(String),
    Hold(String),
    Component(String),
    Name(Ablatable),
    Layer(usize),
    Head(usize),
}

impl std::str::FromStr for What {
    type Err = anyhow::Error;

    /// `ablation=zero`, `name=L26H2`, `component=mlp,layer=3`, `additions`, `unfinished`
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "additions" => return Ok(What::Additions),
            "unfinished" => return Ok(What::Unfinished),
            _ => {}
        }
        Ok(What::Ablations(text.split(',').map(condition).collect::<Result<_>>()?))
    }
}

fn condition(text: &str) -> Result<Condition> {
    let (key, value) = text.split_once('=').with_context(|| {
        format!(
            "`{text}` is not understood; expected a part of the key such as ablation=zero, or additions, or unfinished"
        )
    })?;
    let (key, value) = (key.trim(), value.trim().trim_matches('\''));
    let number = || value.parse().with_context(|| format!("{key}={value}: expected a number"));
    let components = [Component::Attention, Component::Block, Component::Head, Component::Mlp].map(Component::name);
    Ok(match key {
        "ablation" => Condition::Ablation(value.into()),
        "hold" => Condition::Hold(value.into()),
        "component" => {
            ensure!(components.contains(&value), "component={value}: expected one of {}", components.join(", "));
            Condition::Component(value.into())
        }
        "name" => Condition::Name(Ablatable::parse(value)?),
        "layer" => Condition::Layer(number()?),
        "head" => Condition::Head(number()?),
        _ => bail!(
            "there is no `{key}` in the key of ablations; expected ablation, hold, component, name, layer or head"
        ),
    })
}

impl Condition {
    fn holds(&self, ablation: &Ablation) -> bool {
        let Ablation { kind, hold, component } = ablation;
        match self {
            Condition::Ablation(name) => kind.name() == name,
            Condition::Hold(name) => hold.name() == *name,
            Condition::Component(name) => component.component.name() == name,
            Condition::Name(name) => component == name,
            Condition::Layer(layer) => component.layer == *layer,
            Condition::Head(head) => component.head == Some(*head),
        }
    }
}

impl What {
    fn is_dropped(&self, ablation: &Ablation) -> bool {
        match self {
            What::Ablations(conditions) => conditions.iter().all(|condition| condition.holds(ablation)),
            _ => false,
        }
    }

    /// What would be removed from a run, in words.
    ///
    /// # Errors
    /// If nothing would be.
    pub fn found(&self, out: &Path) -> Result<String> {
        run_folder::check(out)?;
        ensure!(run_folder::is_run(out), "{} is not a run; name one with --out", out.display());
        let coverage = pieces::coverage(out)?;
        let found = match self {
            What::Additions => {
                let lines = additions::lines(coverage.additions());
                (!lines.is_empty()).then(|| lines.join("; "))
            }
            What::Unfinished => {
                let open = unfinished(out)?;
                let lines = open.iter().map(|open| Coverage::of([&open.holds]).lines().join("; "));
                (!open.is_empty()).then(|| format!("unfinished: {}", lines.collect::<Vec<_>>().join("; ")))
            }
            What::Ablations(_) => {
                let dropped = coverage.ablations().iter().filter(|(a, _)| self.is_dropped(a));
                let dropped: Vec<_> = dropped.map(|(a, outputs)| (*a, outputs.clone())).collect();
                let pieces = dropped.into_iter().map(|(a, outputs)| Piece::new([a].into(), outputs, None));
                let pieces: Vec<Piece> = pieces.collect::<Result<_>>()?;
                (!pieces.is_empty()).then(|| Coverage::of(&pieces).lines().join("; "))
            }
        };
        let has = coverage.lines().join("; ");
        let nothing = || {
            format!(
                "nothing of that is in {}, which has {}",
                out.display(),
                if has.is_empty() { "no ablations" } else { &has }
            )
        };
        found.with_context(nothing)
    }
}

fn unfinished(out: &Path) -> Result<Vec<pieces::OpenPiece>> {
    let identity = manifest(out, Stage::Ablate).map(|m| m.fingerprint).unwrap_or_default();
    pieces::open(out, &identity)
}

/// Removes it. Derived tables and the report are those of before, until `analyze` and `report` run.
///
/// # Errors
/// If another process uses the folder, or a file cannot be read, written or removed.
pub fn drop_from(out: &Path, what: &What) -> Result<String> {
    what.found(out)?;
    let mut folder = RunFolder::open(out, String::new(), &[], None)?;
    replace::finish_moving(&folder)?;
    // Another process may have replaced the run since the first look.
    let found = what.found(out)?;
    let begun = records::sound_manifest(out, Stage::Ablate)?;
    let begun = begun.with_context(|| {
        format!(
            "stages/ablate.json of {} is lost or corrupt; `pipeline run ablate` finds the pieces again",
            out.display()
        )
    })?;
    folder.run_id = run_id(&begun.fingerprint)?;
    let identity = Inputs { parts: begun.parts, fingerprint: begun.fingerprint };
    folder.begin_pieces(&identity)?;
    match what {
        What::Unfinished => {
            unfinished(out)?.iter().try_for_each(|piece| folder.give_up(piece))?;
            folder.tidy_pieces(&identity)?;
        }
        _ => {
            folder.drop_ablations(&identity, |a| what.is_dropped(a), *what == What::Additions)?;
        }
    }
    Ok(format!(
        "dropped from {}: {found}\n`pipeline run report`, with settings that no longer ask for it, brings the derived tables \
         and the report up to date",
        out.display()
    ))
}

/// As files of the run have it.
pub(super) fn run_id(identity: &str) -> Result<String> {
    selfrepair_core::files::fingerprint(&identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_named_by_parts_of_the_key() {
        let what = |text: &str| text.parse::<What>();
        let name = Ablatable::parse("L26H2").unwrap();
        assert_eq!(what("additions").unwrap(), What::Additions);
        let both = vec![Condition::Ablation("zero".into()), Condition::Name(name)];
        assert_eq!(what("ablation=zero,name=L26H2").unwrap(), What::Ablations(both));
        for (wrong, words) in [
            ("zero", "`zero` is not understood"),
            ("kind=zero", "there is no `kind`"),
            ("layer=x", "expected a number"),
            ("component=heads", "expected one of attention, block, head, mlp"),
            ("name=H2", "is not a component"),
        ] {
            let error = format!("{:#}", what(wrong).unwrap_err());
            assert!(error.contains(words), "{error}");
        }
    }
}
