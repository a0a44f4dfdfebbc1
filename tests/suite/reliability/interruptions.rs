//! Killed and stopped runs, and two runs at once.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use selfrepair_store::run_folder::{STAGES, Stage, manifest};

use super::*;

fn spawn(stage: &str, out: &Path) -> Child {
    everything(stage, out).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The stage that a killed run was at: begun and not finished.
fn stage_at_work(out: &Path) -> &'static str {
    let begun = |s: &&Stage| manifest(out, **s).is_some_and(|m| !m.complete);
    STAGES.iter().find(begun).map_or("between stages", |s| s.name())
}

/// Starts a run and kills it once `stage` has been at work for so long.
fn kill_in(stage: Stage, after: Duration, out: &Path) {
    let path = out.join("stages").join(format!("{}.json", stage.name()));
    let written = || path.metadata().and_then(|m| m.modified()).ok();
    // What an earlier kill left is no sign that the stage is at work now.
    let before = written();
    let mut child = spawn("all", out);
    while written() == before && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_micros(300));
    }
    std::thread::sleep(after);
    child.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(!text(&output.stderr).contains("error:"), "{}", text(&output.stderr));
}

/// Finished shards with their times.
fn shards(out: &Path, table: &str) -> BTreeMap<PathBuf, SystemTime> {
    let work = (1..9).map(|piece| out.join(format!("work/ablate/{piece:05}")).join(table));
    let folders = [out.join("tables").join(table)].into_iter().chain(work);
    let whole = folders.flat_map(|folder| files(&folder)).filter(|p| p.extension().unwrap() == "parquet");
    whole.map(|p| (p.clone(), p.metadata().unwrap().modified().unwrap())).collect()
}

/// How many of the shards that were there are not there as they were. A piece that is complete is renamed.
fn lost(before: &BTreeMap<PathBuf, SystemTime>, out: &Path, table: &str) -> usize {
    let now = shards(out, table);
    let times: Vec<&SystemTime> = now.values().collect();
    before.iter().filter(|(path, time)| now.get(*path) != Some(time) && !times.contains(time)).count()
}

/// One run after the other is killed in each of its stages, at moments drawn over the stage's own time.
#[test]
fn a_run_killed_in_any_stage_resumes_to_the_same_bytes() {
    let undisturbed = tempfile::tempdir().unwrap();
    succeeded(everything("all", undisturbed.path()).output().unwrap());
    let seconds = STAGES.map(|s| manifest(undisturbed.path(), s).unwrap().seconds.unwrap());
    let expected = contents(undisturbed.path());
    for (table, count) in [("clean", 5), ("ablations", 3)] {
        assert_eq!(shards(undisturbed.path(), table).len(), count, "{table}");
    }

    let mut dice = Dice::new();
    let wanted = cases(2, 30);
    let mut kills = BTreeMap::from(STAGES.map(|s| (s.name(), 0)));
    let (mut runs, mut again) = (0, 0);
    while STAGES.iter().any(|&s| kills[s.name()] < wanted) {
        let dir = tempfile::tempdir().unwrap();
        let mut before: [BTreeMap<_, _>; 2] = Default::default();
        for (stage, seconds) in STAGES.into_iter().zip(seconds) {
            for _ in 0..3 {
                if kills[stage.name()] >= wanted || manifest(dir.path(), stage).is_some_and(|m| m.complete) {
                    break;
                }
                kill_in(stage, Duration::from_secs_f64(seconds * dice.below(1000) as f64 / 1000.0), dir.path());
                *kills.entry(stage_at_work(dir.path())).or_default() += 1;
                for (before, table) in before.iter_mut().zip(["clean", "ablations"]) {
                    let lost = lost(before, dir.path(), table);
                    // A shard is written again if it had its name but its checksum was not written down yet.
                    assert!(lost <= 1, "{lost} finished shards of {table} were made again");
                    again += lost;
                    *before = shards(dir.path(), table);
                }
            }
        }
        succeeded(everything("all", dir.path()).output().unwrap());
        assert_same(dir.path(), &expected, &format!("kills {kills:?}"));
        runs += 1;
        assert!(runs < 30 * wanted, "stages end before they can be killed: {kills:?}");
    }
    println!("killed in {runs} runs, and resumed: {kills:?}; finished shards made again: {again}");
}

/// What a kill leaves is known to be the run's: nothing of it is taken for a user's file.
#[test]
fn a_run_killed_in_any_stage_gives_way_to_another_configuration() {
    let mut dice = Dice::new();
    for stage in STAGES {
        for _ in 0..cases(1, 20) {
            let dir = tempfile::tempdir().unwrap();
            kill_in(stage, Duration::from_millis(dice.below(300) as u64), dir.path());
            let mut other = everything("corpus", dir.path());
            // Every stage depends on it.
            succeeded(other.args(["--set", "corpus.prompt_len=10", "--fresh", "--yes"]).output().unwrap());
            for folder in ["model", "work", "activations", "sums", "figures", "report"] {
                let left = files(&dir.path().join(folder));
                assert!(left.is_empty(), "a kill in {}: {left:?}", stage.name());
            }
            let tables = files(&dir.path().join("tables"));
            let of_corpus =
                ["targets/empty.parquet", "tokens/tokens.parquet"].map(|t| dir.path().join("tables").join(t));
            assert_eq!(tables, of_corpus, "a kill in {}", stage.name());
        }
    }
}

fn send(signal: &str, child: &Child) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn ctrl_c_and_sigterm_end_a_run_in_order_and_say_how_to_resume() {
    let undisturbed = tempfile::tempdir().unwrap();
    let start = Instant::now();
    succeeded(everything("analyze", undisturbed.path()).output().unwrap());
    let whole = start.elapsed();
    let expected = contents(undisturbed.path());
    let (mut dice, mut stopped) = (Dice::new(), 0);
    for case in 0..cases(6, 60) {
        let dir = tempfile::tempdir().unwrap();
        let child = spawn("analyze", dir.path());
        // Signals are listened for before anything else; a process takes a moment to get there.
        let delay = Duration::from_millis(60) + whole.mul_f64(dice.below(900) as f64 / 1000.0);
        std::thread::sleep(delay);
        send(["-INT", "-TERM"][case % 2], &child);
        let output = child.wait_with_output().unwrap();
        let said = text(&output.stderr);
        assert!(!said.contains("panicked") && !said.contains("error:"), "{said}");
        if output.status.success() {
            continue;
        }
        stopped += 1;
        assert_eq!(output.status.code(), Some(130), "{said}");
        assert!(said.contains("the same command resumes the run"), "{said}");
        let half: Vec<_> =
            files(dir.path()).into_iter().filter(|p| p.extension().is_some_and(|e| e == "partial")).collect();
        assert!(half.is_empty(), "{half:?}");
        succeeded(everything("analyze", dir.path()).output().unwrap());
        assert_same(dir.path(), &expected, "a signal");
    }
    println!("stopped by signals and resumed: {stopped}");
    assert!(stopped >= cases(2, 30), "{stopped}");
}

#[test]
fn a_second_run_into_a_folder_is_refused_and_the_lock_of_a_dead_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = spawn("all", dir.path());
    let lock = dir.path().join(".lock");
    let start = Instant::now();
    // It names its process once it holds the folder.
    while fs::read_to_string(&lock).unwrap_or_default().trim() != first.id().to_string() {
        assert!(start.elapsed() < Duration::from_secs(60) && first.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(2));
    }
    send("-STOP", &first);
    let error = failed(everything("all", dir.path()).output().unwrap());
    assert!(error.contains(&format!("in use by another run (process {})", first.id())), "{error}");
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!(fs::read_to_string(&lock).unwrap().trim(), first.id().to_string(), "the lock still names the dead one");
    succeeded(everything("corpus", dir.path()).output().unwrap());
}
