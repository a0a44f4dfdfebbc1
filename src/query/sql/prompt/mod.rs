//! The interactive prompt of `pipeline sql`.
//!
//! A statement may span several lines and ends with `;`. A line that begins with a backslash is a command of the
//! prompt.

mod commands;
mod complete;

use std::future::Future;
use std::io::Write;
use std::path::PathBuf;
use std::pin::pin;
use std::task::Poll;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use arrow::array::RecordBatch;
use datafusion::dataframe::DataFrame;
use datafusion::error::DataFusionError;
use rustyline::error::ReadlineError;
use rustyline::history::DefaultHistory;
use rustyline::{CompletionType, Config, Editor};
use tokio::runtime::Handle;

use super::budget::Kept;
use super::output::head;
use super::parse::has_parameters;
use super::session::{ROWS_ON_A_TERMINAL, Tables, numbers};
use super::stack::{FAULT, apart, runtime};
use super::table::Digits;
use super::terminal::for_terminal;
use commands::Next;
use complete::Assistant;
use selfrepair_core::plain::{Stdout, visible_lines, visible_paragraph};
use selfrepair_core::progress;

const PROMPT: &str = "sql> ";

/// What `\timing`, `\limit`, `\x` and `\digits` set.
struct Settings {
    timing: bool,
    /// Rows shown of a result; 0 shows all.
    limit: usize,
    /// One line per value; `None`: only if a table would be too wide.
    expanded: Option<bool>,
    digits: Digits,
}

/// Reads statements and answers them until the user leaves.
pub fn prompt(tables: &Tables, digits: Digits) -> Result<()> {
    // Before the editor, which puts back the handler that it found.
    let interrupts = Interrupts::listen()?;
    let config = Config::builder()
        .completion_type(CompletionType::List)
        .completion_show_all_if_ambiguous(true)
        .history_ignore_dups(true)?
        .history_ignore_space(true)
        .max_history_size(10_000)?
        .build();
    let mut editor: Editor<Assistant, DefaultHistory> = Editor::with_config(config)?;
    editor.set_helper(Some(Assistant::new(tables)));
    let history = history_file();
    if let Some(path) = &history {
        // There is none the first time.
        editor.load_history(path).ok();
    }

    say(r"\? for help, \d for the tables, \q to leave; a statement ends with ;")?;
    let mut settings = Settings { timing: false, limit: ROWS_ON_A_TERMINAL, expanded: None, digits };
    loop {
        match editor.readline(PROMPT) {
            Ok(text) if text.trim().is_empty() => {}
            Ok(text) => {
                editor.add_history_entry(text.trim_end())?;
                if let Some(path) = &history {
                    // A statement is kept even if the terminal is closed next. A read-only home is no reason to stop.
                    editor.append_history(path).ok();
                }
                match answer(tables, &interrupts, &text, &mut settings) {
                    Ok(Next::Leave) => return Ok(()),
                    Ok(Next::GoOn) => {}
                    Err(e) => say(&visible_paragraph(&format!("error: {e:#}")))?,
                }
                // `create view …` is completed from now on.
                if editor.helper().is_some_and(|assistant| assistant.tables != tables.names()) {
                    editor.set_helper(Some(Assistant::new(tables)));
                }
            }
            // Ctrl-C drops what is typed; Ctrl-D leaves.
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => return Ok(()),
            Err(e) => return Err(e).context("cannot read from the terminal"),
        }
    }
}

/// One command, or all statements of what was typed.
fn answer(tables: &Tables, interrupts: &Interrupts, text: &str, settings: &mut Settings) -> Result<Next> {
    if text.trim_start().starts_with('\\') {
        return commands::run(tables, text.trim(), settings);
    }
    let parameters = if has_parameters(text) { tables.parameters()? } else { Vec::new() };
    for statement in tables.statements(text)? {
        let started = Instant::now();
        let planned = interrupts.unless_pressed(apart(tables.planning(&statement, text, &numbers(&parameters))?)?);
        let frame = match planned {
            Some(Ok(Some(frame))) => Some(frame.map_err(|e| tables.explain(&e, text))?),
            Some(_) => bail!(FAULT),
            None => None,
        };
        match frame.and_then(|frame| rows(tables, interrupts, frame, settings.limit)) {
            Some(result) => show(&result.map_err(|e| tables.explain(&e, text))?, settings)?,
            None => {
                say("cancelled")?;
                break;
            }
        }
        for note in tables.notes_on(&statement) {
            say(&note)?;
        }
        if settings.timing {
            say(&format!("took {}", precise(started.elapsed().as_secs_f64())))?;
        }
    }
    Ok(Next::GoOn)
}

fn show(rows: &[RecordBatch], settings: &Settings) -> Result<()> {
    let limit = settings.limit;
    // `create view …` has nothing to show.
    if rows.iter().all(|batch| batch.num_columns() == 0) {
        return Ok(());
    }
    let count: usize = rows.iter().map(RecordBatch::num_rows).sum();
    let more = limit > 0 && count > limit;
    say(&for_terminal(&if more { head(rows, limit) } else { rows.to_vec() }, settings.expanded, settings.digits)?)?;
    if more {
        return say(&format!(
            "the first {limit} rows; `\\limit 0` shows all, `pipeline sql --output FILE` writes them to a file"
        ));
    }
    say(&if count == 1 { "1 row".to_string() } else { format!("{count} rows") })
}

/// Runs a query on the session's threads, until it has more rows than will be shown or Ctrl-C is pressed: then `None`.
fn rows(
    tables: &Tables,
    interrupts: &Interrupts,
    frame: DataFrame,
    limit: usize,
) -> Option<Result<Vec<RecordBatch>, DataFusionError>> {
    let mut kept = Kept::of(&frame);
    kept.rows.push(RecordBatch::new_empty(std::sync::Arc::new(frame.schema().as_arrow().clone())));
    let handle = Handle::clone(tables.runtime());
    // Planning cannot be stopped. Once abandoned, it continues in the background beside the next statement.
    let planned = match apart(move || handle.block_on(frame.execute_stream())) {
        Ok(planned) => planned,
        Err(e) => return Some(Err(DataFusionError::External(e.into()))),
    };
    let query = tables.runtime().spawn(async move {
        let mut stream = match planned.await {
            Ok(Some(stream)) => stream?,
            _ => return Err(DataFusionError::Plan(FAULT.to_string())),
        };
        let mut count = 0;
        while limit == 0 || count <= limit {
            let Some(batch) = std::future::poll_fn(|cx| stream.as_mut().poll_next(cx)).await else { break };
            let batch = batch?;
            count += batch.num_rows();
            kept.add(batch)?;
        }
        Ok(kept.rows)
    });
    let abort = query.abort_handle();
    match interrupts.unless_pressed(query) {
        Some(Ok(rows)) => Some(rows),
        // It panicked.
        Some(Err(_)) => Some(Err(DataFusionError::Plan(FAULT.to_string()))),
        None => {
            abort.abort();
            None
        }
    }
}

/// Ctrl-C, heard on a thread of its own: a query may keep all threads of the session busy.
struct Interrupts(tokio::runtime::Runtime);

impl Interrupts {
    /// From now on, Ctrl-C does not end the process.
    fn listen() -> Result<Self> {
        let runtime = runtime(1)?;
        // The first look installs the handler, and it stays.
        runtime.block_on(unless(tokio::signal::ctrl_c(), std::future::ready(())));
        Ok(Self(runtime))
    }

    /// What `work` gives, or nothing if Ctrl-C is pressed first.
    fn unless_pressed<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.0.block_on(unless(work, tokio::signal::ctrl_c()))
    }
}

/// What `work` gives, or nothing if `stop` comes first.
async fn unless<T>(work: impl Future<Output = T>, stop: impl Future) -> Option<T> {
    let (mut work, mut stop) = (pin!(work), pin!(stop));
    std::future::poll_fn(|cx| match (work.as_mut().poll(cx), stop.as_mut().poll(cx)) {
        (Poll::Ready(value), _) => Poll::Ready(Some(value)),
        (_, Poll::Ready(_)) => Poll::Ready(None),
        _ => Poll::Pending,
    })
    .await
}

/// Prints a line; unlike `println!`, a terminal that has gone is an error and no panic.
fn say(text: &str) -> Result<()> {
    Ok(writeln!(Stdout, "{}", visible_lines(text))?)
}

/// `12 ms`, `3.4 s`.
fn precise(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:.0} ms", seconds * 1e3) } else { progress::seconds(seconds) }
}

/// Where the statements of earlier sessions are kept; nowhere if the user has no such folder.
fn history_file() -> Option<PathBuf> {
    let folder = dirs::state_dir().or_else(dirs::data_local_dir)?.join("self-repair");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("sql_history"))
}
