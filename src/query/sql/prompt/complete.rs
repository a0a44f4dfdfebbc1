//! Completion of names, and when a statement is complete.

use std::collections::{BTreeSet, HashMap};

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
use rustyline::completion::{Completer, Pair};
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Context, Helper};

use super::commands::COMMANDS;
use crate::sql::Tables;

/// Those that queries over these tables use.
const KEYWORDS: &[&str] = &[
    "all",
    "and",
    "as",
    "asc",
    "between",
    "by",
    "case",
    "cast",
    "create view",
    "cross join",
    "desc",
    "describe",
    "distinct",
    "else",
    "end",
    "except",
    "exists",
    "explain",
    "from",
    "full join",
    "group by",
    "having",
    "in",
    "inner join",
    "intersect",
    "is not null",
    "is null",
    "join",
    "left join",
    "like",
    "limit",
    "not",
    "nulls last",
    "offset",
    "on",
    "or",
    "order by",
    "over",
    "partition by",
    "right join",
    "select",
    "show tables",
    "then",
    "union",
    "union all",
    "using",
    "values",
    "when",
    "where",
    "with",
];

/// With which a statement begins.
const STARTS: &[&str] = &["create view", "describe", "explain", "from", "select", "show tables", "with"];

/// What helps at the prompt. It lives as long as the prompt, beside the session.
pub struct Assistant {
    pub tables: Vec<String>,
    /// Columns of every table and view.
    columns: HashMap<String, Vec<String>>,
    functions: Vec<String>,
}

impl Assistant {
    pub fn new(tables: &Tables) -> Self {
        let names = tables.names();
        // Reading a few dozen footers takes milliseconds; completion must then wait for nothing.
        let columns = names
            .iter()
            .filter_map(|name| {
                let schema = tables.schema(name).ok()?;
                Some((name.clone(), schema.fields().iter().map(|f| f.name().clone()).collect()))
            })
            .collect();
        Self { tables: names, columns, functions: tables.functions() }
    }

    /// Completions of the word that ends at `position`, and where it starts.
    fn completions(&self, line: &str, position: usize) -> (usize, Vec<Pair>) {
        let part_of_a_name = |c: char| c.is_alphanumeric() || c == '_';
        let text = line.get(..position).unwrap_or(line);
        if text.starts_with('\\') && !text.contains(' ') {
            let commands: BTreeSet<&str> = COMMANDS.iter().filter_map(|(c, _)| c.split(' ').next()).collect();
            return (0, matching(text, commands.into_iter()));
        }
        let start = text.trim_end_matches(part_of_a_name).len();
        let (before, word) = text.split_at(start);
        let previous = before.split_whitespace().next_back().unwrap_or_default().to_ascii_lowercase();
        if before.starts_with('\\') || ["from", "join", "describe", "table"].contains(&previous.as_str()) {
            return (start, matching(word, self.tables.iter().map(String::as_str)));
        }
        if before.trim_end().is_empty() || before.trim_end().ends_with(';') {
            return (start, matching(word, STARTS.iter().copied()));
        }
        // What comes after the cursor counts too: `select se| from ablations`.
        let tables = self.mentioned(line);
        if let Some(qualifier) = before.strip_suffix('.') {
            let qualifier = qualifier.rsplit(|c| !part_of_a_name(c)).next().unwrap_or_default();
            // An alias: the columns of every table that is named.
            let of = if self.columns.contains_key(qualifier) { vec![qualifier] } else { tables };
            return (start, matching(word, self.columns_of(&of)));
        }
        let functions: Vec<String> = self.functions.iter().map(|f| format!("{f}(")).collect();
        let names = self
            .columns_of(&tables)
            .chain(self.tables.iter().map(String::as_str))
            .chain(functions.iter().map(String::as_str))
            .chain(KEYWORDS.iter().copied());
        (start, matching(word, names))
    }

    /// Tables that the text names; all, if it names none yet (`select se` before there is a `from`).
    fn mentioned(&self, text: &str) -> Vec<&str> {
        let words: BTreeSet<&str> = text.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
        let named: Vec<&str> = self.tables.iter().map(String::as_str).filter(|t| words.contains(t)).collect();
        if named.is_empty() { self.tables.iter().map(String::as_str).collect() } else { named }
    }

    fn columns_of<'a>(&'a self, tables: &[&'a str]) -> impl Iterator<Item = &'a str> + use<'a> {
        let columns: BTreeSet<&str> =
            tables.iter().filter_map(|t| self.columns.get(*t)).flatten().map(String::as_str).collect();
        columns.into_iter()
    }
}

/// The names that begin with the word, once each, in the order in which they come.
fn matching<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> Vec<Pair> {
    let word = word.to_lowercase();
    let mut seen = BTreeSet::new();
    names
        .filter(|name| name.to_lowercase().starts_with(&word) && seen.insert(*name))
        .map(|name| Pair { display: name.to_string(), replacement: name.to_string() })
        .collect()
}

/// Whether Enter ends the input: a command, or statements of which the last has its `;`.
fn is_complete(text: &str) -> bool {
    if text.trim().is_empty() || text.trim_start().starts_with('\\') {
        return true;
    }
    // A string or a comment that is still open is an error of the tokenizer.
    let Ok(tokens) = Tokenizer::new(&GenericDialect {}, text).tokenize() else { return false };
    tokens.iter().rev().find(|t| !matches!(t, Token::Whitespace(_))) == Some(&Token::SemiColon)
}

impl Completer for Assistant {
    type Candidate = Pair;

    fn complete(&self, line: &str, pos: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        Ok(self.completions(line, pos))
    }
}

impl Validator for Assistant {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match is_complete(context.input()) {
            true => ValidationResult::Valid(None),
            false => ValidationResult::Incomplete,
        })
    }
}

impl Hinter for Assistant {
    type Hint = String;
}
impl Highlighter for Assistant {}
impl Helper for Assistant {}
