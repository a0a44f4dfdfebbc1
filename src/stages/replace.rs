//! `--replace`: another run in the place of the one that is there. The new one is computed in a folder of its own below
//! the old one, which is removed when the new one is complete.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use selfrepair_core::config::Config;
use selfrepair_core::files::write_atomically;
use selfrepair_core::own_files::{self, LOCK, MARKER, OWNED, REPLACEMENT, REPORT_LOCK};
use selfrepair_core::progress;
use selfrepair_store::run_folder::{self, RunFolder, Stage};

use super::{Prepared, Run, Start, identity};

/// In the replacement's folder once it is complete, until it has taken the place of the old run.
const COMPLETE: &str = ".complete";
/// There once the old run is removed.
const MOVING: &str = ".moving";

/// As [`run`](super::run), but a run that contradicts the request is replaced.
///
/// # Errors
/// As [`run`](super::run). The old run stays then.
pub fn replace(config: Config, out: &Path, last: Stage) -> Result<String> {
    run_folder::check(out)?;
    let wanted = Prepared::of(config.clone())?;
    if identity::contradictions(out, &wanted.identity).is_empty() || !identity::is_bound(out) {
        return super::run(config, out, last, Start::Grow);
    }
    let aside = out.join(REPLACEMENT);
    // Before anything is computed: what could not be removed in the end.
    RunFolder::open(out, String::new(), &[], None)?.refuse_foreign_everywhere()?;
    progress::line("run", &format!("computed in {}; then it replaces what is in {}", aside.display(), out.display()));
    {
        let run = Run::open(config.clone(), &aside)?;
        run.refuse_foreign(last, false)?;
        run.announce()?;
        run.ensure_up_to(last)?;
    }
    write_atomically(&aside.join(COMPLETE), b"")?;
    let old = RunFolder::open(out, String::new(), &[], None)?;
    finish_replacing(&old)?;
    drop(old);
    let run = Run::open(config, out)?;
    run.ensure_up_to(last)?;
    run.summary(last)
}

/// Puts a complete replacement in the place of the run in a folder, which is locked.
///
/// # Errors
/// If something of the old run cannot be removed, or of the new one renamed. The next command goes on with it.
pub fn finish_replacing(folder: &RunFolder) -> Result<()> {
    let (root, aside) = (folder.root(), folder.root().join(REPLACEMENT));
    if !own_files::is_file(&aside.join(COMPLETE)) {
        return Ok(());
    }
    run_folder::check(&aside)?;
    // The old run is removed once: what was moved already is the new one's.
    let moving = aside.join(MOVING);
    if !own_files::is_file(&moving) {
        folder.remove_all()?;
        write_atomically(&moving, b"")?;
    }
    for owned in OWNED {
        for (from, _) in own_files::walk(&aside.join(owned))? {
            let to = root.join(from.strip_prefix(&aside)?);
            let parent = to.parent().unwrap_or(root);
            fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
            fs::rename(&from, &to).with_context(|| format!("cannot write {}", to.display()))?;
        }
        own_files::remove_empty_below(&aside.join(owned))?;
    }
    let names = [MOVING, MARKER, LOCK, REPORT_LOCK, COMPLETE].map(|name| format!("{REPLACEMENT}/{name}"));
    own_files::remove_files(root, &names)?;
    folder.reload();
    Ok(())
}
