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
            let before = line[..at].chars().next_back().is_some_and(part_of_a_name);
            let after = line[at + word.len()..].chars().next().is_some_and(part_of_a_name);
            if !before && !after {
                places.push((i + 1, line[..at].chars().count() + 1, word.chars().count()));
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
    fn a_place_is_shown_when_it_is_the_only_one() {
        assert_eq!(place_of("de", "select\n  de from x"), Some((2, 3, 2)));
        assert_eq!(place_of("de", "select de, de from x"), None);
        assert_eq!(place_of("de", "select decode from x"), None);
        assert_eq!(excerpt("select de", 1, 8, 2), "\n  |\n1 | select de\n  |        ^^");
    }
}
