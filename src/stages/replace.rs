//! `--replace`: another run in the place of the one that is there. The new one is computed in a folder of its own below
//! the old one, which is removed when the new one is complete.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use selfrepair_core::config::Config;
use selfrepair_core::files::write_atomically;
use selfrepair_core::own_files::{self, LOCK, MARKER, OWNED, REPLACEMENT, REPORT_LOCK};
use selfrepair_core::progress;
use selfrepair_store::records;
use selfrepair_store::run_folder::{self, Inputs, RunFolder, STAGES, Stage};

use super::{Prepared, Run, Start, identity};

/// In the replacement's folder once it is complete. Renamed to [`MOVING`] once the old run is removed.
const COMPLETE: &str = ".complete";
/// In the replacement's folder while it takes the place of the old run. Removed last.
const MOVING: &str = ".moving";

/// As [`run`](super::run), but a run that contradicts the request is replaced.
///
/// # Errors
/// As [`run`](super::run). The old run stays then.
pub fn replace(config: Config, out: &Path, last: Stage) -> Result<String> {
    run_folder::check(out)?;
    let wanted = Prepared::of(config.clone())?;
    let aside = out.join(REPLACEMENT);
    {
        // Before anything is computed: what could not be removed in the end.
        let old = RunFolder::open(out, String::new(), &[], None)?;
        finish_moving(&old)?;
        if identity::contradictions(out, &wanted.identity).is_empty() || !identity::is_bound(out) {
            drop(old);
            return super::run(config, out, last, Start::Grow);
        }
        refuse_fewer_stages(out, last)?;
        old.refuse_foreign_everywhere()?;
        clear_another(&aside, &wanted.identity)?;
    }
    progress::line("run", &format!("computed in {}; then it replaces what is in {}", aside.display(), out.display()));
    {
        let run = Run::open(config.clone(), &aside)?;
        run.refuse_foreign(last, false)?;
        run.announce()?;
        run.ensure_up_to(last)?;
    }
    write_atomically(&aside.join(COMPLETE), b"")?;
    let run = Run::open(config, out)?;
    run.ensure_up_to(last)?;
    run.summary(last)
}

/// # Errors
/// If the old run has finished a stage that the new one would not have.
fn refuse_fewer_stages(out: &Path, last: Stage) -> Result<()> {
    let is_finished = |stage: &Stage| run_folder::manifest(out, *stage).is_some_and(|m| m.complete);
    let lost = STAGES.into_iter().filter(|stage| *stage > last && *stage <= Stage::Ablate).rfind(is_finished);
    if let Some(lost) = lost {
        bail!(
            "{} has finished {}, which `run {} --replace` would remove and not replace; run `all` or `{}`, or choose another \
             --out",
            out.display(),
            lost.name(),
            last.name(),
            lost.name()
        );
    }
    Ok(())
}

/// Removes a replacement with other settings that was begun and not completed.
///
/// # Errors
/// If it is complete: it is a result.
fn clear_another(aside: &Path, wanted: &Inputs) -> Result<()> {
    let differ = identity::contradictions(aside, wanted);
    if differ.is_empty() {
        return Ok(());
    }
    ensure!(
        !own_files::is_file(&aside.join(COMPLETE)),
        "{} holds a complete replacement with other settings ({}): give the command that made it again, which puts it in \
         place, or remove it with --fresh",
        aside.display(),
        differ.join(", ")
    );
    progress::line("run", &format!("{} was begun with other settings and starts over", aside.display()));
    remove(aside)
}

/// Removes what a replacement has computed so far.
///
/// # Errors
/// If another process computes it, or a file cannot be removed.
pub fn remove(aside: &Path) -> Result<()> {
    if run_folder::is_run(aside) {
        run_folder::check(aside)?;
        let folder = RunFolder::open(aside, String::new(), &[], None)?;
        folder.remove_all()?;
        remove_marks(aside)?;
    }
    Ok(())
}

/// Whether a replacement waits for its place: one that this request asked for, or whose move has begun.
pub fn is_pending(root: &Path, wanted: &Inputs) -> bool {
    let aside = root.join(REPLACEMENT);
    let is_wanted = || identity::contradictions(&aside, wanted).is_empty();
    is_moving(root) || own_files::is_file(&aside.join(COMPLETE)) && is_wanted()
}

fn is_moving(root: &Path) -> bool {
    own_files::is_file(&root.join(REPLACEMENT).join(MOVING))
}

/// Puts a complete replacement in the place of the run in a folder, which this process has alone, if the request asked for
/// it. Another stays where it is.
///
/// # Errors
/// If something of the old run cannot be removed, or of the new one renamed. The next command goes on with it.
pub fn put_in_place(folder: &RunFolder, wanted: &Inputs) -> Result<()> {
    if !is_pending(folder.root(), wanted) {
        return Ok(());
    }
    let (root, aside) = (folder.root(), folder.root().join(REPLACEMENT));
    run_folder::check(&aside)?;
    if !is_moving(root) {
        refuse_to_overwrite(root, &aside)?;
        folder.remove_all()?;
        let (from, to) = (aside.join(COMPLETE), aside.join(MOVING));
        fs::rename(&from, &to).with_context(|| format!("cannot write {}", to.display()))?;
    }
    finish_moving(folder)
}

/// # Errors
/// If a file of the replacement would overwrite one that is not the old run's. Nothing is removed then.
fn refuse_to_overwrite(root: &Path, aside: &Path) -> Result<()> {
    let known = records::recorded_by_all(root)?;
    for (from, _) in OWNED.iter().map(|owned| own_files::walk(&aside.join(owned))).collect::<Result<Vec<_>>>()?.concat()
    {
        let name = from.strip_prefix(aside)?;
        let is_record = name.starts_with("stages");
        ensure!(
            is_record
                || name.to_str().is_some_and(|n| known.contains(n))
                || root.join(name).symlink_metadata().is_err(),
            "{} was not written by this run, and the replacement has a file of that name: move it elsewhere; nothing was \
             removed",
            root.join(name).display()
        );
    }
    Ok(())
}

/// Moves a replacement whose old run is removed, as far as a process that ended has not.
///
/// # Errors
/// If a file cannot be renamed. The next command goes on with it.
pub fn finish_moving(folder: &RunFolder) -> Result<()> {
    let (root, aside) = (folder.root(), folder.root().join(REPLACEMENT));
    if !is_moving(root) {
        return Ok(());
    }
    run_folder::check(&aside)?;
    for owned in OWNED {
        for (from, _) in own_files::walk(&aside.join(owned))? {
            let to = root.join(from.strip_prefix(&aside)?);
            let parent = to.parent().unwrap_or(root);
            fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
            fs::rename(&from, &to).with_context(|| format!("cannot write {}", to.display()))?;
        }
        own_files::remove_empty_below(&aside.join(owned))?;
    }
    remove_marks(&aside)?;
    folder.reload();
    Ok(())
}

/// Removes a replacement's marks and locks, and the folder if nothing else is in it. The mark of the move goes last.
fn remove_marks(aside: &Path) -> Result<()> {
    own_files::remove_temporary(aside)?;
    let names = [COMPLETE, LOCK, REPORT_LOCK, MARKER, MOVING].map(String::from);
    names.iter().try_for_each(|name| own_files::remove_files(aside, [name]))?;
    for owned in OWNED {
        own_files::remove_empty_below(&aside.join(owned))?;
    }
    fs::remove_dir(aside).ok();
    Ok(())
}
