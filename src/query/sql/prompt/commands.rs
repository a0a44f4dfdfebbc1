//! Commands of the prompt, which begin with a backslash.

use anyhow::{Context, Result, bail};

use super::{Settings, say};
use crate::catalog;
use crate::sql::Tables;

/// What the prompt does after a command.
pub enum Next {
    GoOn,
    Leave,
}

/// Names and what they do, for `\?` and for completion.
pub const COMMANDS: [(&str, &str); 8] = [
    (r"\d", "the tables and views"),
    (r"\d NAME", "a table's columns: type, unit, description"),
    (r"\timing", "turn the timing of statements on or off"),
    (r"\limit N", "show at most N rows of a result; 0 shows all"),
    (r"\x [on|off|auto]", "one line per value; auto: only if a table would be too wide"),
    (r"\digits N|all", "show so many significant digits of a number, or all"),
    (r"\?", "this"),
    (r"\q", "leave (also Ctrl-D)"),
];

const HELP: &str = "
A statement is SQL, may go over several lines, and ends with ;
Tab completes tables, columns, functions and keywords. Ctrl-C cancels a query, or discards the input.
`create view NAME as …` names a query for this session.";

pub fn run(tables: &Tables, text: &str, settings: &mut Settings) -> Result<Next> {
    let text = text.trim_end_matches(';').trim_end();
    let (command, argument) = text.split_once(char::is_whitespace).map_or((text, ""), |(c, a)| (c, a.trim()));
    match (command, argument) {
        (r"\q" | r"\quit", "") => return Ok(Next::Leave),
        (r"\?" | r"\h" | r"\help", "") => {
            let width = COMMANDS.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
            COMMANDS.iter().try_for_each(|(name, what)| say(&format!("{name:width$}  {what}")))?;
            say(HELP)?;
        }
        (r"\d" | r"\dt", "") => say(&catalog::list_of_session(tables))?,
        (r"\d", name) => say(&catalog::table_of_session(tables, name)?)?,
        (r"\timing", "" | "on" | "off") => {
            settings.timing = if argument.is_empty() { !settings.timing } else { argument == "on" };
            say(if settings.timing { "timing is on" } else { "timing is off" })?;
        }
        (r"\limit", number) => {
            settings.limit = number.parse().with_context(|| format!(r"\limit {number}: expected a number of rows"))?;
        }
        (r"\x", "" | "on" | "off" | "auto") => {
            let on = settings.expanded == Some(true);
            settings.expanded =
                if argument == "auto" { None } else { Some(argument == "on" || argument.is_empty() && !on) };
        }
        (r"\digits", "") => say(&format!("digits: {}", settings.digits))?,
        (r"\digits", number) => settings.digits = number.parse().context(r"\digits")?,
        _ => bail!(r"{text} is not a command; \? lists them"),
    }
    Ok(Next::GoOn)
}
