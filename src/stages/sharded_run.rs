//! Several processes on one run (`--shard i/n`). The first process runs everything before `ablate`. Each process then
//! computes its shards. The last one to finish runs `analyze` and `report`.

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

/// How a process holds the folder.
enum Access {
    /// Together with other processes that ablate.
    Shared,
    /// Alone, because no shard is left to compute.
    Alone,
}

/// Computes a set of shards of `ablate`, after the stages before it. The last process to finish runs the stages up to
/// `last`. Returns the summary for the terminal.
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
            return Ok(format!("shards {set} of {place} are done; {others} will run the next stages"));
        }
        run.folder.reload();
        let left = ablate::sets_left(&context, &prompts, set)?;
        if !left.is_empty() {
            let left: Vec<String> = left.iter().map(|set| format!("--shard {set}")).collect();
            return Ok(format!(
                "shards {set} of {place} are done; still to run: {}, or a run without --shard",
                left.join(", ")
            ));
        }
    }
    run.ensure_up_to(last)?;
    run.summary(last)
}

/// Shares the folder with other processes once shards can be computed. Until then, runs the earlier stages, or waits for
/// another process that runs them.
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

/// Whether the files that all shards of `ablate` read exist.
fn has_begun(run: &Run) -> bool {
    let (files, graphs) = (run.files(Stage::Ablate), run.folder.model());
    run.folder.has_begun(Stage::Ablate, run.fingerprint(Stage::Ablate))
        && ablate::has_begun(&run.context(&graphs, &files))
}

/// # Errors
/// If unfinished processes with another configuration share the run: their files would be removed.
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
        "{} is shared by --shard processes with another configuration, which are not finished: {}; nothing was cleared. Use \
         their configuration, choose another --out, or discard their results with a run without --shard",
        root.display(),
        differ.join(", ")
    );
    Ok(())
}

fn is_current_before_ablate(run: &Run) -> bool {
    STAGES.into_iter().filter(|&s| s < Stage::Ablate).all(|s| run.folder.is_current(s, run.fingerprint(s)))
        && !run.folder.is_current(Stage::Ablate, run.fingerprint(Stage::Ablate))
}
