//! Times `analyze` on the tables of a run, such as `tests/reference/large_run.py` makes up: the whole stage, then each
//! query alone, as the stage runs it: on one core, in a session that has read the files before. The derived tables of
//! that run are written anew.
//!
//! ```text
//! cargo bench --bench analyze -- RUN
//! ```
//!
//! `RUN -` times the SQL files named on standard input, one a line, instead of the built-in ones;
//! `tests/reference/queries_in_duckdb.py` asks so for the same queries in turn with DuckDB.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use selfrepair_core::config::AnalysisConfig;
use selfrepair_query::analyze::{CHECKS, DERIVED, Tables, analyze, derived_tables, open};
use selfrepair_store::Metadata;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).filter(|a| a != "--bench");
    // Without a run there is nothing to time, and `cargo bench` shall still pass.
    let Some(run) = arguments.next().map(PathBuf::from) else { return Ok(()) };
    let config = AnalysisConfig::default();
    for name in derived_tables() {
        fs::create_dir_all(run.join("tables").join(name))?;
    }
    let meta = Metadata { run_id: "timed".into(), fingerprint: "timed".into(), ledger: None };
    timed("the whole stage", || analyze(&run, &config, &meta, || Ok(())).map(|_| 0))?;

    let tables = open(&run, &config)?;
    for name in derived_tables().into_iter().filter(|name| !is_empty(&run, name)) {
        tables.add(name, &run)?;
    }
    if arguments.next().is_some_and(|a| a == "-") {
        for file in std::io::stdin().lines() {
            let file = file?;
            let sql = fs::read_to_string(&file).with_context(|| file.clone())?;
            timed(&file, || ask(&tables, &sql, &config))?;
        }
        return Ok(());
    }
    for query in CHECKS.iter().chain(DERIVED) {
        ask(&tables, &query.text, &config)?;
        timed(&query.name, || ask(&tables, &query.text, &config))?;
    }
    Ok(())
}

/// Of the paper's models only are there tables beside the authors' numbers.
fn is_empty(run: &std::path::Path, table: &str) -> bool {
    fs::read_dir(run.join("tables").join(table)).is_ok_and(|mut files| files.next().is_none())
}

fn ask(tables: &Tables, sql: &str, config: &AnalysisConfig) -> Result<usize> {
    let rows = tables.collect(sql, &[("top_fraction", config.top_fraction)])?;
    Ok(rows.iter().map(|b| b.num_rows()).sum())
}

fn timed(name: &str, work: impl FnOnce() -> Result<usize>) -> Result<()> {
    let (cpu, started) = (cpu_seconds()?, Instant::now());
    let rows = work()?;
    let (wall, cpu) = (started.elapsed().as_secs_f64(), cpu_seconds()? - cpu);
    println!("{name:40} {rows:8} rows {wall:9.4} s {cpu:9.4} s of CPU, peak {:.2} GB", peak_memory()?);
    Ok(())
}

/// Processor time of this process, all threads together.
#[allow(unsafe_code)]
fn cpu_seconds() -> Result<f64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes to `time`, which outlives the call, and nowhere else.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    ensure!(failed == 0, "this system does not tell a process its processor time");
    Ok(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
}

/// The most memory the process had so far, in GB.
fn peak_memory() -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).context("/proc/self/status")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1e6)
}
