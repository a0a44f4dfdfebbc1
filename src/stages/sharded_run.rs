//! Several processes on one run (`--shard i/n`). One of them, whichever comes first, brings the run to where shards can be
//! computed; each computes its set; and the one that ends last does what remains.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::Run;
use crate::status::differences;
use selfrepair_core::config::Config;
use selfrepair_core::interrupt;
use selfrepair_core::progress;
use selfrepair_core::shards::ShardSet;
use selfrepair_measure::ablate;
use selfrepair_store::locks::named;
use selfrepair_store::run_folder::{STAGES, Stage, manifest};

/// How a process has the folder.
enum Access {
    /// With others that ablate.
    Shared,
    /// Alone, because nothing is left to share.
    Alone,
}

/// Computes a set of shards of `ablate`, and what is before; the last process to end goes on to `last`. Returns the
/// summary for the terminal.
pub fn run_set(config: Config, out: &Path, last: Stage, set: ShardSet) -> Result<String> {
    ensure!(last >= Stage::Ablate, "--shard divides ablate, which comes after {}; leave it out", last.name());
    let run = Run::open_with(config, out, Some(set))?;
    run.announce();
    if let Access::Shared = take_when_begun(&run, last)? {
        let (prompts, files, graphs) = (run.prompts()?, run.files(Stage::Ablate), run.folder.model());
        let context = run.context(&graphs, &files);
        ablate::ablate_set(&context, &prompts, set)?;
        run.folder.lock.release()?;
        let place = run.folder.root().display();
        if !run.folder.lock.try_alone()? {
            let others = named(run.folder.root());
            return Ok(format!("shards {set} of {place} are done; {others} will go on when done too"));
        }
        run.folder.reload();
        let left = ablate::sets_left(&context, &prompts, set)?;
        if !left.is_empty() {
            let left: Vec<String> = left.iter().map(|set| format!("--shard {set}")).collect();
            return Ok(format!(
                "shards {set} of {place} are done; what is left is that of {}, or of a run without --shard",
                left.join(", ")
            ));
        }
    }
    run.ensure_up_to(last)?;
    run.summary(last)
}

/// Takes the folder together with others once shards can be computed, after bringing it there or waiting for another
/// process that does.
fn take_when_begun(run: &Run, last: Stage) -> Result<Access> {
    let lock = &run.folder.lock;
    let mut told = false;
    loop {
        interrupt::check()?;
        if lock.try_share()? {
            run.folder.reload();
            refuse_another_configuration(run)?;
            if is_current_before_ablate(run) && has_begun(run) {
                return Ok(Access::Shared);
            }
            lock.release()?;
        }
        if lock.try_alone()? {
            run.folder.reload();
            refuse_another_configuration(run)?;
            run.refuse_foreign(last, false)?;
            run.clear_stale()?;
            run.ensure_up_to(Stage::Trace)?;
            if run.folder.is_current(Stage::Ablate, run.fingerprint(Stage::Ablate)) {
                return Ok(Access::Alone);
            }
            run.folder.begin(Stage::Ablate, run.fingerprint(Stage::Ablate), &run.folders(Stage::Ablate))?;
            let (files, graphs) = (run.files(Stage::Ablate), run.folder.model());
            ablate::begin(&run.context(&graphs, &files), &run.prompts()?)?;
            lock.release()?;
            continue;
        }
        if !told {
            progress::line("run", &format!("waiting for {}", named(run.folder.root())));
            told = true;
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// Whether what all shards of `ablate` read is there.
fn has_begun(run: &Run) -> bool {
    let (files, graphs) = (run.files(Stage::Ablate), run.folder.model());
    run.folder.has_begun(Stage::Ablate, run.fingerprint(Stage::Ablate))
        && ablate::has_begun(&run.context(&graphs, &files))
}

/// # Errors
/// If processes with another configuration share the run and have not finished: what they computed would be cleared.
fn refuse_another_configuration(run: &Run) -> Result<()> {
    let root = run.folder.root();
    let Some(begun) = manifest(root, Stage::Ablate).filter(|m| !m.complete) else { return Ok(()) };
    let Some(of_analyze) = begun.shared else { return Ok(()) };
    let mut differ = Vec::new();
    for stage in STAGES.into_iter().filter(|&s| s <= Stage::Ablate && run.folder.is_stale(s, run.fingerprint(s))) {
        let found = manifest(root, stage).map(|m| m.parts).unwrap_or_default();
        differ.extend(differences(&found, run.folder.parts(stage)));
    }
    if &of_analyze != run.folder.parts(Stage::Analyze) {
        differ.extend(differences(&of_analyze, run.folder.parts(Stage::Analyze)));
    }
    differ.sort();
    differ.dedup();
    ensure!(
        differ.is_empty(),
        "{} is shared by --shard processes with another configuration, and is not finished: {}; nothing was cleared. Give \
         this process their configuration, choose another --out, or give up what they computed with a run without --shard",
        root.display(),
        differ.join(", ")
    );
    Ok(())
}

fn is_current_before_ablate(run: &Run) -> bool {
    STAGES.into_iter().filter(|&s| s < Stage::Ablate).all(|s| run.folder.is_current(s, run.fingerprint(s)))
        && !run.folder.is_current(Stage::Ablate, run.fingerprint(Stage::Ablate))
}
