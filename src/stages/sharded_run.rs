//! Several processes on one run (`--shard i/n`). The first process runs everything before `ablate` and plans the pieces.
//! Each process then computes its shards of them. The last one to finish runs `analyze` and `report`.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use selfrepair_core::config::Config;
use selfrepair_core::interrupt;
use selfrepair_core::progress;
use selfrepair_core::prompts::Prompts;
use selfrepair_core::shards::ShardSet;
use selfrepair_measure::ablate;
use selfrepair_store::locks::named;
use selfrepair_store::pieces::{self, OpenPiece};
use selfrepair_store::run_folder::{Parts, STAGES, Stage};

use super::{Run, identity};
use crate::status::differences;

/// How a process holds the folder.
enum Access {
    /// Together with other processes that ablate these pieces.
    Shared(Vec<OpenPiece>),
    /// Alone, because no shard is left to compute.
    Alone,
}

/// Computes a set of shards of `ablate`, after the stages before it. The last process to finish runs the stages up to
/// `last`. Returns the summary for the terminal.
pub fn run_set(config: Config, out: &Path, last: Stage, set: ShardSet) -> Result<String> {
    ensure!(last >= Stage::Ablate, "--shard divides ablate, which comes after {}; leave it out", last.name());
    let run = Run::open_with(config, out, Some(set), true)?;
    if let Access::Shared(pieces) = take_when_begun(&run, last)? {
        let prompts = run.prompts()?;
        for piece in &pieces {
            let files = run.files_of(piece)?;
            run.measure(piece, &files, |context| ablate::ablate_set(context, &prompts, set))?;
        }
        run.folder.lock.release()?;
        let place = run.folder.root().display();
        if !run.folder.lock.try_alone()? {
            let others = named(run.folder.root());
            return Ok(format!("shards {set} of {place} are done; {others} will run the next stages"));
        }
        run.folder.reload();
        let left = sets_left(&run, &pieces, &prompts, set)?;
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

/// Sets of which a shard of a piece is not computed.
fn sets_left(run: &Run, pieces: &[OpenPiece], prompts: &Prompts, set: ShardSet) -> Result<Vec<ShardSet>> {
    let mut left = Vec::new();
    for piece in pieces {
        let of_piece = run.measure(piece, &run.files_of(piece)?, |context| ablate::sets_left(context, prompts, set))?;
        left.extend(of_piece.into_iter().filter(|set| !left.contains(set)).collect::<Vec<_>>());
    }
    Ok(left)
}

/// Shares the folder with other processes once shards can be computed. Until then, runs the earlier stages, or waits for
/// another process that runs them.
fn take_when_begun(run: &Run, last: Stage) -> Result<Access> {
    let lock = &run.folder.lock;
    let request = identity::of_request(&run.config, &run.identity, &run.request)?;
    let mut told = false;
    loop {
        interrupt::check()?;
        if lock.try_share()? {
            run.folder.reload();
            refuse_another_request(run, &request)?;
            if let Some(pieces) = begun(run)? {
                return Ok(Access::Shared(pieces));
            }
            lock.release()?;
        }
        if lock.try_alone()? {
            run.folder.reload();
            run.put_replacement_in_place()?;
            refuse_another_request(run, &request)?;
            run.refuse_foreign(last, false)?;
            run.announce()?;
            run.ensure_up_to(Stage::Trace)?;
            run.folder.begin_pieces(&run.identity)?;
            if run.has_all_pieces()? {
                return Ok(Access::Alone);
            }
            if !begin(run, &request)? {
                return Ok(Access::Alone);
            }
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

/// Plans the pieces, and writes what all their shards read. Returns whether there are shards to divide.
fn begin(run: &Run, request: &Parts) -> Result<bool> {
    let prompts = run.prompts()?;
    let mut pieces = run.pieces_to_compute(request)?;
    pieces.retain(is_divided);
    for piece in &pieces {
        run.measure(piece, &run.files_of(piece)?, |context| ablate::begin(context, &prompts).map(|_| ()))?;
    }
    Ok(!pieces.is_empty())
}

/// Whether a piece has shards. Additions have none: the last process computes them.
fn is_divided(piece: &OpenPiece) -> bool {
    !piece.holds.ablations().is_empty()
}

/// The pieces that are planned, if they are all that the request needs and the files that their shards read exist.
fn begun(run: &Run) -> Result<Option<Vec<OpenPiece>>> {
    if run.replacement_is_pending() {
        return Ok(None);
    }
    for stage in STAGES.into_iter().filter(|&stage| stage < Stage::Ablate) {
        if !run.is_current(stage)? {
            return Ok(None);
        }
    }
    let (pieces, left) = run.pieces_to_resume()?;
    let pieces: Vec<OpenPiece> = pieces.into_iter().filter(is_divided).collect();
    if !left.is_empty() || pieces.is_empty() {
        return Ok(None);
    }
    for piece in &pieces {
        if !run.measure(piece, &run.files_of(piece)?, |context| Ok(ablate::has_begun(context)))? {
            return Ok(None);
        }
    }
    Ok(Some(pieces))
}

/// # Errors
/// If processes with another request share the run, and are not finished: the last one would analyze what it wants.
fn refuse_another_request(run: &Run, request: &Parts) -> Result<()> {
    let root = run.folder.root();
    identity::refuse_contradiction(root, &run.identity)?;
    for open in pieces::open(root, &run.identity.fingerprint)?.iter().filter(|open| !open.request.is_empty()) {
        ensure!(
            open.request == *request,
            "{} is shared by --shard processes with another configuration, which are not finished: {}; nothing was changed. \
             Use their configuration, choose another --out, or give up their results with `pipeline drop unfinished`",
            root.display(),
            differences(&open.request, request).join(", ")
        );
    }
    Ok(())
}
