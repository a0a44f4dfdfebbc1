//! Several processes on one run.

use std::process::{Child, Stdio};

use super::*;

fn shard(set: &str, last: &str, out: &Path) -> Command {
    let mut command = everything(last, out);
    command.args(["--shard", set]).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn said(child: Child) -> String {
    succeeded(child.wait_with_output().unwrap())
}

#[test]
fn processes_that_share_a_run_write_the_bytes_of_one() {
    let alone = tempfile::tempdir().unwrap();
    succeeded(everything("analyze", alone.path()).output().unwrap());
    let expected = contents(alone.path());

    // At the same time, from nothing: the first process runs up to ablate, the last one runs the rest.
    let dir = tempfile::tempdir().unwrap();
    let sets = ["1/3", "2/3", "3/3"];
    let children: Vec<Child> = sets.iter().map(|set| shard(set, "analyze", dir.path()).spawn().unwrap()).collect();
    let said: Vec<String> = children.into_iter().map(said).collect();
    assert_eq!(said.iter().filter(|s| s.contains("analyze is up to date")).count(), 1, "{said:?}");
    assert_same(dir.path(), &expected, "three processes");

    // One after the other, the second of them killed and taken over by a run that is not divided.
    let dir = tempfile::tempdir().unwrap();
    let first = succeeded(shard("1/2", "analyze", dir.path()).output().unwrap());
    assert!(first.contains("still to run: --shard 2/2, or a run without --shard"), "{first}");
    let mut second = shard("2/2", "analyze", dir.path()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20 + Dice::new().below(200) as u64));
    second.kill().unwrap();
    second.wait().unwrap();
    succeeded(everything("analyze", dir.path()).output().unwrap());
    assert_same(dir.path(), &expected, "a set, a kill and a whole run");
}

#[test]
fn a_set_of_shards_is_refused_where_it_makes_no_sense() {
    let dir = tempfile::tempdir().unwrap();
    let error = failed(shard("1/2", "trace", dir.path()).output().unwrap());
    assert!(error.contains("--shard divides ablate, which comes after trace"), "{error}");
    let error = failed(shard("3/2", "all", dir.path()).output().unwrap());
    assert!(error.contains("expected i/n with i from 1 to n"), "{error}");
}
