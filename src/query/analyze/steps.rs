//! Runs steps that read what others write, several at a time.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::{Error, Result, anyhow};

use selfrepair_core::interrupt;

/// A piece of work with a name, under which others may read what it wrote.
pub struct Step<'a> {
    pub name: &'static str,
    /// Names of what it reads. Those that no step has are there from the start.
    pub reads: Vec<String>,
    pub work: Box<dyn FnOnce() -> Result<()> + Send + 'a>,
}

#[derive(Default)]
struct State<'a> {
    waiting: Vec<Step<'a>>,
    /// Names of steps that are waiting or running.
    unfinished: HashSet<&'static str>,
    running: usize,
    error: Option<Error>,
}

impl<'a> State<'a> {
    /// The first step that waits for no other.
    fn take_ready(&mut self) -> Option<Step<'a>> {
        let unfinished = &self.unfinished;
        let ready = |s: &Step| !s.reads.iter().any(|r| r != s.name && unfinished.contains(r.as_str()));
        self.waiting.iter().position(ready).map(|i| self.waiting.remove(i))
    }
}

/// Runs every step, each once what it reads is written, on as many threads. A step runs on one thread, so that its result
/// does not depend on how many there are.
pub fn run(steps: Vec<Step>, threads: usize) -> Result<()> {
    let unfinished = steps.iter().map(|s| s.name).collect();
    let state = Mutex::new(State { waiting: steps, unfinished, ..Default::default() });
    let changed = Condvar::new();
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| work(&state, &changed));
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
    while now.error.is_none() && !now.waiting.is_empty() {
        let Some(step) = now.take_ready() else {
            if now.running == 0 {
                let names: Vec<&str> = now.waiting.iter().map(|s| s.name).collect();
                now.error = Some(anyhow!("{} read each other in a circle", names.join(", ")));
                break;
            }
            now = changed.wait(now).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        now.running += 1;
        drop(now);
        let result = interrupt::check().and_then(|()| (step.work)());
        now = lock();
        now.running -= 1;
        now.unfinished.remove(step.name);
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
