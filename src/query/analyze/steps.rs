//! Topological order of queries that read each other: one by one, or in steps whose queries run in parallel.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::{Error, Result, anyhow};

use selfrepair_core::interrupt;

/// A thing with a name, under which others may read what it writes.
pub struct Item<T> {
    pub name: String,
    /// Names of what it reads. Those that no item has are there from the start.
    pub reads: Vec<String>,
    pub thing: T,
}

/// Items that are not done yet.
struct Pending<T> {
    waiting: Vec<Item<T>>,
    /// Names of items that are waiting or were taken.
    unfinished: HashSet<String>,
}

impl<T> Pending<T> {
    fn new(waiting: Vec<Item<T>>) -> Self {
        Self { unfinished: waiting.iter().map(|item| item.name.clone()).collect(), waiting }
    }

    /// The first that reads nothing that is not done. One that reads itself never is.
    fn take_ready(&mut self) -> Option<Item<T>> {
        let unfinished = &self.unfinished;
        let ready = |item: &Item<T>| !item.reads.iter().any(|r| unfinished.contains(r));
        self.waiting.iter().position(ready).map(|i| self.waiting.remove(i))
    }

    fn done(&mut self, name: &str) {
        self.unfinished.remove(name);
    }
}

/// Things in an order in which each comes after those that it reads.
///
/// # Errors
/// If some read each other in a circle: these.
pub fn in_order<T>(items: Vec<Item<T>>) -> Result<Vec<T>, Vec<T>> {
    let mut pending = Pending::new(items);
    let mut ordered = Vec::with_capacity(pending.waiting.len());
    while !pending.waiting.is_empty() {
        let ready: Vec<Item<T>> = std::iter::from_fn(|| pending.take_ready()).collect();
        if ready.is_empty() {
            return Err(pending.waiting.into_iter().map(|item| item.thing).collect());
        }
        for item in ready {
            pending.done(&item.name);
            ordered.push(item.thing);
        }
    }
    Ok(ordered)
}

/// A piece of work with a name, under which others may read what it wrote.
pub struct Step<'a> {
    pub name: &'static str,
    /// Names of what it reads. Those that no step has are there from the start.
    pub reads: Vec<String>,
    pub work: Work<'a>,
}

type Work<'a> = Box<dyn FnOnce() -> Result<()> + Send + 'a>;

struct State<'a> {
    pending: Pending<Work<'a>>,
    running: usize,
    error: Option<Error>,
}

/// Runs every step, each once what it reads is written, on as many threads. A step runs on one thread, so that its result
/// does not depend on how many there are.
pub fn run(steps: Vec<Step>, threads: usize) -> Result<()> {
    let items = steps.into_iter().map(|Step { name, reads, work }| Item { name: name.to_string(), reads, thing: work });
    let state = Mutex::new(State { pending: Pending::new(items.collect()), running: 0, error: None });
    let changed = Condvar::new();
    std::thread::scope(|scope| {
        let start = |_: &usize| std::thread::Builder::new().spawn_scoped(scope, || work(&state, &changed)).is_ok();
        // Where the system gives no thread, this one does the work.
        if (0..threads).filter(start).count() == 0 {
            work(&state, &changed);
        }
    });
    match state.into_inner().unwrap_or_else(PoisonError::into_inner).error {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn work(state: &Mutex<State>, changed: &Condvar) {
    let lock = || -> MutexGuard<_> { state.lock().unwrap_or_else(PoisonError::into_inner) };
    let mut now = lock();
    while now.error.is_none() && !now.pending.waiting.is_empty() {
        let Some(step) = now.pending.take_ready() else {
            if now.running == 0 {
                let names: Vec<&str> = now.pending.waiting.iter().map(|s| &*s.name).collect();
                now.error = Some(anyhow!("{} read each other in a circle", names.join(", ")));
                break;
            }
            now = changed.wait(now).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        now.running += 1;
        drop(now);
        let result = interrupt::check().and_then(|()| (step.thing)());
        now = lock();
        now.running -= 1;
        now.pending.done(&step.name);
        if let Err(error) = result {
            now.error.get_or_insert(error);
        }
        changed.notify_all();
    }
    changed.notify_all();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step<'a>(name: &'static str, reads: &[&str], done: &'a Mutex<Vec<&'static str>>) -> Step<'a> {
        let work = move || {
            done.lock().unwrap().push(name);
            Ok(())
        };
        Step { name, reads: reads.iter().map(|r| r.to_string()).collect(), work: Box::new(work) }
    }

    #[test]
    fn a_step_runs_after_those_it_reads() {
        for threads in [1, 3] {
            let done = Mutex::new(vec![]);
            let steps = vec![
                step("c", &["b", "a", "measured"], &done),
                step("b", &["a"], &done),
                step("a", &["measured"], &done),
            ];
            run(steps, threads).unwrap();
            assert_eq!(*done.lock().unwrap(), ["a", "b", "c"]);
        }
    }

    #[test]
    fn an_order_keeps_that_of_the_list_where_it_may() {
        let items = |of: &[(&str, &[&str])]| {
            let item = |(i, (name, reads)): (usize, &(&str, &[&str]))| Item {
                name: name.to_string(),
                reads: reads.iter().map(|r| r.to_string()).collect(),
                thing: i,
            };
            of.iter().enumerate().map(item).collect::<Vec<_>>()
        };
        assert_eq!(in_order(items(&[("c", &["b"]), ("b", &["measured"]), ("a", &[])])), Ok(vec![1, 2, 0]));
        assert_eq!(in_order(items(&[("a", &["b"]), ("b", &["a"]), ("c", &[])])), Err(vec![0, 1]));
        assert_eq!(in_order(items(&[("a", &["a"]), ("b", &[])])), Err(vec![0]));
    }

    #[test]
    fn circles_and_failures_are_errors() {
        let done = Mutex::new(vec![]);
        let circle = vec![step("a", &["b"], &done), step("b", &["a"], &done), step("c", &[], &done)];
        assert_eq!(run(circle, 2).unwrap_err().to_string(), "a, b read each other in a circle");
        let failing = Step { name: "a", reads: vec![], work: Box::new(|| Err(anyhow!("it fails"))) };
        let after = step("b", &["a"], &done);
        assert_eq!(run(vec![after, failing], 2).unwrap_err().to_string(), "it fails");
        assert_eq!(*done.lock().unwrap(), ["c"]);
    }
}
