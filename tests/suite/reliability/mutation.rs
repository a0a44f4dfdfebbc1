//! Corrupt files for a reader: valid bytes with some edits, each case by a number that gives it again.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::panic;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, Instant};

use anyhow::{Error, Result};
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, RngAlgorithm, TestRng, TestRunner};

use super::{Dice, cases};

/// A run of small files may make a process grow by this much, and not more.
pub const MOST_MEMORY: u64 = 1 << 30;

/// No file of these may take longer to read.
const MOST_TIME: Duration = Duration::from_secs(60);

/// Cases of a reader that are kept: one for each way to end.
const MOST_KEPT: usize = 100;

/// How often a reader is called: as often as `PIPELINE_FUZZ_EXECUTIONS` says, if it says it.
pub fn executions(quick: usize, long: usize) -> usize {
    let given = std::env::var("PIPELINE_FUZZ_EXECUTIONS").ok();
    given.map_or_else(|| cases(quick, long), |count| count.parse().expect("PIPELINE_FUZZ_EXECUTIONS must be a number"))
}

/// Runs `cases` cases, which follow from `seed`.
pub fn runner(seed: u64, cases: u32) -> TestRunner {
    let config = Cases { cases, failure_persistence: None, ..Cases::default() };
    let seed: Vec<u8> = seed.to_le_bytes().into_iter().cycle().take(32).collect();
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed))
}

/// One change to a file.
#[derive(Debug, Clone)]
enum Edit {
    Flip(usize, u8),
    Insert(usize, Vec<u8>),
    Remove(usize, usize),
    Cut(usize),
    /// A number as lengths and counts are stored, of a size that hurts.
    Number(usize, u64),
    /// A few bytes, written so many times: what nests, repeats or grows.
    Repeat(usize, usize, usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    // Half of the places near the beginning, where headers are.
    let place = prop_oneof![0usize..600, any::<u32>().prop_map(|n| n as usize)];
    let times = prop_oneof![20 => 1usize..100, 4 => 100usize..10_000, 1 => 10_000usize..300_000];
    let numbers = [0, 1, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 40, u64::MAX / 2, u64::MAX];
    prop_oneof![
        4 => (place.clone(), any::<u8>()).prop_map(|(at, by)| Edit::Flip(at, by)),
        1 => (place.clone(), prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(at, what)| Edit::Insert(at, what)),
        1 => (place.clone(), 1usize..40).prop_map(|(at, n)| Edit::Remove(at, n)),
        1 => place.clone().prop_map(Edit::Cut),
        2 => (place.clone(), prop::sample::select(numbers.to_vec())).prop_map(|(at, n)| Edit::Number(at, n)),
        1 => (place, 1usize..9, times).prop_map(|(at, n, times)| Edit::Repeat(at, n, times)),
    ]
}

fn apply(bytes: &mut Vec<u8>, edit: &Edit) {
    let within = |at: usize| at % bytes.len().max(1);
    match edit {
        _ if bytes.is_empty() => {}
        Edit::Flip(at, by) => {
            let at = within(*at);
            bytes[at] ^= by;
        }
        Edit::Insert(at, what) => {
            let at = within(*at);
            bytes.splice(at..at, what.iter().copied());
        }
        Edit::Remove(at, n) => {
            let at = within(*at);
            bytes.drain(at..(at + n).min(bytes.len()));
        }
        Edit::Cut(at) => bytes.truncate(within(*at)),
        Edit::Number(at, n) => {
            let at = within(*at);
            let end = (at + 8).min(bytes.len());
            bytes[at..end].copy_from_slice(&n.to_le_bytes()[..end - at]);
        }
        Edit::Repeat(at, n, times) => {
            let at = within(*at);
            let what = bytes[at..(at + n).min(bytes.len())].repeat(*times);
            bytes.splice(at..at, what);
        }
    }
}

/// Valid bytes with some edits, or bytes that are nothing.
fn corrupted(valid: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let mutated = prop::collection::vec(edit(), 1..6).prop_map(move |edits| {
        let mut bytes = valid.clone();
        edits.iter().for_each(|e| apply(&mut bytes, e));
        bytes
    });
    prop_oneof![9 => mutated, 1 => prop::collection::vec(any::<u8>(), 0..300)]
}

/// The most memory this process had so far, where the system says it.
pub fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or("0");
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

/// What this thread has computed so far, where the system says it.
fn seconds_of_processor() -> f64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}

/// Has `read` read corrupt versions of the file `name` in `folder`: first those that are kept, then new ones.
pub fn fuzz(what: &str, folder: &Path, name: &str, read: impl Fn(&Path) -> Result<()>) {
    quiet_caught_panics();
    let path = folder.join(name);
    let valid = fs::read(&path).unwrap();
    read(&path).unwrap_or_else(|e| panic!("the valid {name}: {e:#}"));
    let strategy = corrupted(valid.clone());
    let mut kept = Kept::of(what);
    let count = executions(60, 2000) as u64;
    // The quick version tries the same cases every time; the long one others.
    let first = Dice::new().0;
    let (before, start) = (peak(), seconds_of_processor());
    let (refused, slowest, end) = (Cell::new(0), Cell::new(Duration::ZERO), RefCell::new(String::new()));
    let seeds: Vec<u64> = kept.seeds.clone();
    for seed in seeds.into_iter().chain((0..count).map(|i| first.wrapping_add(i))) {
        let mut runner = runner(seed, 1);
        let case = strategy.new_tree(&mut runner).unwrap();
        let result = runner.run_one(case, |bytes| {
            fs::write(&path, &bytes).unwrap();
            let began = Instant::now();
            let result = read(&path);
            slowest.set(slowest.get().max(began.elapsed()));
            prop_assert!(began.elapsed() < MOST_TIME, "it took {:?}", began.elapsed());
            if let Err(error) = &result {
                refused.set(refused.get() + 1);
                let said = format!("{error:#}");
                prop_assert!(said.contains(name) || said.contains(&*folder.to_string_lossy()), "names no file: {said}");
            }
            prop_assert!(peak() < before + MOST_MEMORY, "memory grew from {before} to {} bytes", peak());
            *end.borrow_mut() = result.err().map_or("read".into(), |error| way_to_end(&error));
            Ok(())
        });
        if let Err(error) = result {
            panic!("{what}, case {seed}: {}", shortened(&error.to_string()));
        }
        kept.add(seed, end.take());
    }
    fs::write(&path, valid).unwrap();
    let each = (seconds_of_processor() - start) / count.max(1) as f64;
    println!(
        "{what}: {count} cases, {} refused in {} ways; {:.3} ms each, {:.1} s at most; {} MB more memory",
        refused.get(),
        kept.ends.len(),
        each * 1e3,
        slowest.get().as_secs_f64(),
        (peak() - before) >> 20
    );
}

/// A panic that is caught and becomes an error is not printed, as in the program.
fn quiet_caught_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !selfrepair_core::untrusted::is_guarded() {
                before(info);
            }
        }));
    });
}

/// An error without what it says of the file's own values: tells which check refused.
fn way_to_end(error: &Error) -> String {
    let plain = |text: String| text.split(['`', '"', '\'', '{', '[', '/']).next().unwrap_or_default().to_string();
    let words = |text: String| plain(text).chars().filter(|c| !c.is_ascii_digit()).take(60).collect::<String>();
    error.chain().map(|cause| words(cause.to_string())).collect::<Vec<_>>().join(": ")
}

/// The cases of a reader that ended in a new way when they were found: `tests/fixtures/fuzz/READER.txt` has their numbers.
/// `PIPELINE_FUZZ_KEEP` adds what is found.
struct Kept {
    path: PathBuf,
    seeds: Vec<u64>,
    ends: BTreeSet<String>,
    /// Whether the valid file is another one each time.
    changes: bool,
}

impl Kept {
    fn of(what: &str) -> Self {
        let name: String =
            what.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
        let path = Path::new("tests/fixtures/fuzz").join(format!("{name}.txt"));
        let text = fs::read_to_string(&path).unwrap_or_default();
        Self {
            path,
            seeds: text.lines().map(|line| line.parse().unwrap()).collect(),
            ends: BTreeSet::new(),
            changes: what.starts_with("record"),
        }
    }

    fn add(&mut self, seed: u64, end: String) {
        // Records hold times, so that a number gives another case each time.
        let is_new = self.ends.insert(end) && !self.seeds.contains(&seed) && !self.changes;
        if is_new && self.seeds.len() < MOST_KEPT && std::env::var_os("PIPELINE_FUZZ_KEEP").is_some() {
            self.seeds.push(seed);
            fs::create_dir_all(self.path.parent().unwrap()).unwrap();
            let mut file = fs::File::options().create(true).append(true).open(&self.path).unwrap();
            writeln!(file, "{seed}").unwrap();
        }
    }
}

/// Enough of a failing case to see what it is about; its bytes may be a megabyte.
pub fn shortened(text: &str) -> String {
    let (head, tail) = (text.chars().take(1500), text.chars().skip(text.chars().count().saturating_sub(300)));
    head.chain("…".chars()).chain(tail).collect()
}
