//! DataFusion's errors as sentences: what was not found, what may have been meant, and the position in the query.

use datafusion::common::{Column, SchemaError, Span};
use datafusion::error::DataFusionError;

use super::parse::without_texts;
use super::stack::FAULT;

/// What went wrong with `sql`, for a person to act on.
pub fn explain(error: &DataFusionError, sql: &str, tables: &[String], functions: &[String]) -> String {
    let errors: Vec<&DataFusionError> = error.iter().collect();
    let error = errors.first().copied().unwrap_or(error);
    let span = error.diagnostic().and_then(|d| d.span);
    let root = error.find_root();
    let text = root.message().into_owned();
    // What stands in texts and comments is not what an error is about.
    let code = without_texts(sql);
    let (message, word) = match root {
        _ if text.contains(NO_NUMBER) => (cast_error(&text, &code), None),
        _ if text.contains(NO_SIGNATURE) => (signature_error(&text), None),
        DataFusionError::SchemaError(schema, _) => column_error(schema, &code),
        DataFusionError::SQL(parser, _) => return syntax_error(&parser.to_string(), sql),
        DataFusionError::Plan(plan) => plan_error(plan, tables, functions),
        // It panicked.
        DataFusionError::ExecutionJoin(join) => (format!("{FAULT} ({join})"), None),
        DataFusionError::Internal(_) => {
            let text = text.split("\nThis issue was likely").next().unwrap_or_default();
            (format!("{text} (a bug in the query engine)"), None)
        }
        _ => (text, None),
    };
    let span = word.and_then(|word| place_of(&word, &code)).or_else(|| span.and_then(|s| on_one_line(&s)));
    match span {
        Some((line, column, length)) => format!("{message}{}", excerpt(sql, line, column, length)),
        None => message,
    }
}

/// The message, and the word of the query that it is about.
fn column_error(error: &SchemaError, sql: &str) -> (String, Option<String>) {
    let SchemaError::FieldNotFound { field, valid_fields } = error else { return (error.to_string(), None) };
    // Columns of derived expressions, `avg(x)`, are no use as advice.
    let plain = |c: &&Column| c.name.chars().all(|c| c.is_alphanumeric() || c == '_');
    let names: Vec<&str> = valid_fields.iter().filter(plain).map(|c| c.name.as_str()).collect();
    let mut message = format!("no column `{}`", field.flat_name().replace('"', ""));
    // `where name = "L9H6"`, as other languages write text.
    if sql.contains(&format!("\"{}\"", field.name)) {
        message.push_str(&format!("; double quotes are for column names, single quotes for text: '{}'", field.name));
        return (message, Some(field.name.clone()));
    }
    match nearest(&field.name, &names).as_slice() {
        [] if names.is_empty() => {}
        [] => message.push_str(&format!("; there are {}", list(&names, "and"))),
        near => message.push_str(&format!("; did you mean {}?", list(near, "or"))),
    }
    (message, Some(field.name.clone()))
}

fn plan_error(plan: &str, tables: &[String], functions: &[String]) -> (String, Option<String>) {
    let quoted = |prefix: &str| plan.strip_prefix(prefix).and_then(|rest| rest.split('\'').next()).map(str::to_string);
    if let Some(name) = quoted("table '") {
        let name = name.rsplit('.').next().unwrap_or_default().to_string();
        return (no_such_table(&name, tables), Some(name));
    }
    if let Some(name) = quoted("Invalid function '") {
        let known: Vec<&str> = functions.iter().map(String::as_str).collect();
        let advice = match nearest(&name, &known).as_slice() {
            [] => String::new(),
            near => format!("; did you mean {}?", list(near, "or")),
        };
        return (format!("no function `{name}`{advice}"), Some(name));
    }
    if plan.contains("must appear in the GROUP BY clause") {
        let column = plan.split("column \"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default();
        let column = column.rsplit('.').next().unwrap_or_default().to_string();
        let advice = "must be in `group by`, or inside an aggregate such as avg(…)";
        return (format!("the column `{column}` {advice}"), Some(column));
    }
    if plan.starts_with("No value found for placeholder") {
        let name = plan.rsplit(' ').next().unwrap_or_default();
        return (format!("{name} is not defined; the only parameter is $top_fraction"), None);
    }
    if plan.starts_with("DDL not supported") {
        return (
            "a query cannot create a table; `create view NAME as …` names a query for the session".to_string(),
            None,
        );
    }
    if plan.starts_with("DML not supported") {
        return ("a run's tables are read only; --output FILE writes a result to a file".to_string(), None);
    }
    (plan.to_string(), None)
}

/// What the engine says of a text that it cannot take for a number.
const NO_NUMBER: &str = "Cannot cast string '";

/// `External: Compute error: … CastError("Cannot cast string 'x' to value of UInt16 type")`, without what is around it.
fn cast_error(text: &str, code: &str) -> String {
    let rest = text.split(NO_NUMBER).nth(1).unwrap_or_default();
    let (value, rest) = rest.split_once("' to value of ").unwrap_or((rest, ""));
    let kind = rest.split(' ').next().unwrap_or_default();
    let mut message = format!("{NO_NUMBER}{value}' to {kind}: a text is compared with a number, or made one");
    // `where component = "head"`, where `head` is a column of numbers.
    if let Some(word) = code.split('"').nth(1).filter(|word| !word.is_empty()) {
        message.push_str(&format!(
            "; \"{word}\" in double quotes is the column of that name, single quotes are for text: '{word}'"
        ));
    }
    message
}

/// What the engine says of arguments that a function does not take, in the middle of a text about a bug.
const NO_SIGNATURE: &str = "No function matches the given name and argument types '";

/// `sum(Boolean)`, with the types that there are.
fn signature_error(text: &str) -> String {
    let rest = text.split(NO_SIGNATURE).nth(1).unwrap_or_default();
    let (call, rest) = rest.split_once('\'').unwrap_or((rest, ""));
    let name = call.split('(').next().unwrap_or_default();
    let kind = |line: &str| Some(line.trim().strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')')?.to_string());
    let kinds: Vec<String> = rest.lines().filter_map(kind).collect();
    let takes = if kinds.is_empty() { String::new() } else { format!("; it takes {}", kinds.join(" or ")) };
    let example = match call.contains("Boolean") {
        true => format!(": {name}(cast(x > 0 as int)), or count(*) filter (where x > 0)"),
        false => String::new(),
    };
    format!("the function {name} does not take these types: {call}{takes}. Cast the argument{example}")
}

/// That there is no such table, and which there are.
pub fn no_such_table(name: &str, tables: &[String]) -> String {
    let known: Vec<&str> = tables.iter().map(String::as_str).collect();
    match nearest(name, &known).as_slice() {
        [] => format!("no table `{name}`; there are {}", list(&known, "and")),
        near => format!("no table `{name}`; did you mean {}?", list(near, "or")),
    }
}

/// `sql parser error: Expected: …, found: frm at Line: 1, Column: 10`
fn syntax_error(message: &str, sql: &str) -> String {
    let text = message.trim_start_matches("sql parser error: ");
    if text.starts_with("recursion limit exceeded") {
        return "the query is too deep: more than 50 parentheses, functions or queries are nested; split the query"
            .to_string();
    }
    let Some((text, place)) = text.rsplit_once(" at Line: ") else { return format!("not SQL: {text}") };
    let mut numbers = place.split(", Column: ").filter_map(|n| n.trim().parse::<usize>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(line), Some(column)) => format!("not SQL: {text}{}", excerpt(sql, line, column, 1)),
        _ => format!("not SQL: {text}"),
    }
}

/// The only place where `word` stands on its own: line, column (both from 1) and length.
fn place_of(word: &str, sql: &str) -> Option<(usize, usize, usize)> {
    let part_of_a_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut places = Vec::new();
    for (i, line) in sql.lines().enumerate() {
        let lower = line.to_ascii_lowercase();
        for (at, _) in lower.match_indices(&word.to_ascii_lowercase()) {
            let (Some(before), Some(after)) = (line.get(..at), line.get(at + word.len()..)) else { continue };
            if !before.ends_with(part_of_a_name) && !after.starts_with(part_of_a_name) {
                places.push((i + 1, before.chars().count() + 1, word.chars().count()));
            }
        }
    }
    match places.as_slice() {
        [one] => Some(*one),
        _ => None,
    }
}

fn on_one_line(span: &Span) -> Option<(usize, usize, usize)> {
    let (start, end) = (span.start, span.end);
    let length = if end.line == start.line { end.column.saturating_sub(start.column).max(1) } else { 1 };
    (start.line > 0).then_some((start.line as usize, start.column as usize, length as usize))
}

/// The line, with a mark below the place.
fn excerpt(sql: &str, line: usize, column: usize, length: usize) -> String {
    let Some(text) = sql.lines().nth(line.saturating_sub(1)) else { return String::new() };
    // Of a long line, what is around the place.
    let start = if column > 90 { column - 60 } else { 1 };
    let shown: String = text.chars().skip(start - 1).take(110).map(|c| if c == '\t' { ' ' } else { c }).collect();
    let number = line.to_string();
    let margin = " ".repeat(number.len());
    let (space, mark) = (" ".repeat(column - start.min(column)), "^".repeat(length.max(1)));
    format!("\n{margin} |\n{number} | {shown}\n{margin} | {space}{mark}")
}

/// The known names that a misspelt one may have meant, best first.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Vec<&'a str> {
    let name = name.to_lowercase();
    let likeness = |k: &str| {
        let k = k.to_lowercase();
        let part = k.len() >= 4 && name.len() >= 4 && (k.contains(&name) || name.contains(&k));
        strsim::jaro_winkler(&name, &k).max(if part { 0.85 } else { 0.0 })
    };
    let mut near: Vec<(f64, &str)> = known.iter().map(|&k| (likeness(k), k)).filter(|(l, _)| *l >= 0.8).collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    near.dedup();
    let best = near.first().map_or(0.0, |n| n.0);
    near.into_iter().filter(|(l, _)| *l > best - 0.08).take(3).map(|(_, k)| k).collect()
}

/// `a`, `b` and `c`
fn list(names: &[&str], and: &str) -> String {
    let names: Vec<String> = names.iter().map(|n| format!("`{n}`")).collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} {and} {last}", rest.join(", ")),
        _ => names.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_names_come_first_and_distant_ones_not_at_all() {
        assert_eq!(nearest("self_repare", &["layer", "self_repair", "repair_mlp"]), ["self_repair"]);
        assert_eq!(nearest("ablation", &["ablations", "tokens"]), ["ablations"]);
        assert_eq!(nearest("summary", &["head_summary", "layer_summary", "clean"]), ["head_summary", "layer_summary"]);
        assert!(nearest("zzz", &["ablations"]).is_empty());
    }

    #[test]
    fn a_text_that_is_no_number_is_named_without_what_is_around_it() {
        let text = "Compute error: Error evaluating filter predicate: ArrowError(CastError(\"Cannot cast string 'mlp' to value of \
                    UInt16 type\"), Some(\"\"))";
        let said = cast_error(text, "select * from ablations where component = \"head\"");
        assert!(said.starts_with("Cannot cast string 'mlp' to UInt16: a text is compared with a number"), "{said}");
        assert!(said.ends_with("single quotes are for text: 'head'") && !said.contains("ArrowError"), "{said}");
        assert!(!cast_error(text, "select cast(text as int) from tokens").contains("double quotes"));
    }

    #[test]
    fn types_that_a_function_does_not_take_are_no_bug() {
        let text = "Internal error: Function 'sum' failed to match any signature.\nThis issue was likely caused by a bug in \
                    DataFusion's code. No function matches the given name and argument types 'sum(Boolean)'. You might need \
                    to add explicit type casts.\n\tCandidate functions:\n\tsum(Decimal)\n\tsum(Int64)";
        let said = signature_error(text);
        assert!(said.contains("sum(Boolean); it takes Decimal or Int64. Cast the argument"), "{said}");
        assert!(said.contains("sum(cast(x > 0 as int))") && !said.contains("bug"), "{said}");
        let said = signature_error("No function matches the given name and argument types 'avg(Utf8)'.");
        assert_eq!(said, "the function avg does not take these types: avg(Utf8). Cast the argument");
    }

    #[test]
    fn a_place_is_shown_when_it_is_the_only_one() {
        assert_eq!(place_of("de", "select\n  de from x"), Some((2, 3, 2)));
        assert_eq!(place_of("de", "select de, de from x"), None);
        assert_eq!(place_of("de", "select decode from x"), None);
        assert_eq!(excerpt("select de", 1, 8, 2), "\n  |\n1 | select de\n  |        ^^");
    }
}
