//! Which statements are allowed: those that read the run's tables, and others only if the user allows files.

use std::ops::ControlFlow;

use anyhow::{Result, bail, ensure};
use datafusion::execution::context::SQLOptions;
use datafusion::logical_expr::{LogicalPlan, Volatility};
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::{ResetStatement, Statement};
use datafusion::sql::sqlparser::ast::{self, Expr, ObjectName, ObjectType, Set, Visit, Visitor};

use super::parse::statements;

/// Settings of the query engine that change what is shown and nothing that is read, written or taken.
const HARMLESS: [&str; 4] =
    ["datafusion.execution.time_zone", "datafusion.explain.", "datafusion.format.", "datafusion.optimizer."];

/// What the user allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// To read the run's tables, and to name queries for the session.
    Tables,
    /// Besides, to read and write files and to create tables in the session.
    Files,
}

const ADVICE: &str = "`pipeline sql` reads the run's tables: select, explain, describe, show, and `create view` for a query \
                      of this session";

/// # Errors
/// If the statement does what is not allowed. `of_run` says whether a name is that of a table or a view of the run.
pub fn check(statement: &Statement, rights: Rights, of_run: impl Fn(&str) -> bool) -> Result<()> {
    let mut statement = statement;
    while let Statement::Explain(explain) = statement {
        statement = &explain.statement;
    }
    match statement {
        Statement::Statement(statement) => check_plain(statement, rights, of_run),
        Statement::Reset(ResetStatement::Variable(name)) => check_setting(name, rights),
        Statement::CreateExternalTable(create) => {
            needs_files(rights, "`create external table` reads a file")?;
            not_of_run(&create.name, of_run)
        }
        Statement::CopyTo(_) => needs_files(rights, "`copy` writes a file; --output FILE writes a result to one"),
        Statement::Explain(_) => Ok(()),
    }
}

fn check_plain(statement: &ast::Statement, rights: Rights, of_run: impl Fn(&str) -> bool) -> Result<()> {
    let mut statement = statement;
    while let ast::Statement::Explain { statement: inner, .. } = statement {
        statement = inner;
    }
    match statement {
        ast::Statement::Query(_)
        | ast::Statement::ExplainTable { .. }
        | ast::Statement::ShowTables { .. }
        | ast::Statement::ShowColumns { .. }
        | ast::Statement::ShowCreate { .. }
        | ast::Statement::ShowFunctions { .. }
        | ast::Statement::ShowVariable { .. } => Ok(()),
        ast::Statement::Set(Set::SingleAssignment { variable, .. }) => check_setting(variable, rights),
        ast::Statement::Set(Set::SetTimeZone { .. }) => Ok(()),
        ast::Statement::CreateView(view) => not_of_run(&view.name, of_run),
        ast::Statement::Drop { object_type: ObjectType::View, names, .. } => {
            names.iter().try_for_each(|name| not_of_run(name, &of_run))
        }
        ast::Statement::Drop { object_type: ObjectType::Table, names, .. } => {
            needs_files(rights, "`drop table` changes what there is")?;
            names.iter().try_for_each(|name| not_of_run(name, &of_run))
        }
        ast::Statement::CreateTable(create) => {
            needs_files(rights, "`create table` keeps rows in memory; `create view` names a query")?;
            not_of_run(&create.name, of_run)
        }
        ast::Statement::CreateSchema { .. } => needs_files(rights, "`create schema` changes what there is"),
        ast::Statement::Insert(_)
        | ast::Statement::Update(_)
        | ast::Statement::Delete(_)
        | ast::Statement::Merge(_)
        | ast::Statement::Truncate(_)
        | ast::Statement::AlterTable(_) => {
            bail!("a run's tables are read only; --output FILE writes a result to a file")
        }
        other => {
            let words = other.to_string();
            let verb = words.split_whitespace().next().unwrap_or_default().to_lowercase();
            bail!("`{verb}` is not allowed; {ADVICE}")
        }
    }
}

fn needs_files(rights: Rights, what: &str) -> Result<()> {
    ensure!(rights == Rights::Files, "{what}, which is not allowed without --allow-files; {ADVICE}");
    Ok(())
}

fn not_of_run(name: &ObjectName, of_run: impl Fn(&str) -> bool) -> Result<()> {
    let last = name.0.last().and_then(|part| part.as_ident()).map(|i| i.value.clone()).unwrap_or_default();
    let last = [last.to_lowercase(), last];
    let taken = last.iter().find(|name| of_run(name));
    ensure!(
        taken.is_none(),
        "`{}` is a table or a view of the run, which no statement replaces or removes; choose another name",
        taken.cloned().unwrap_or_default()
    );
    Ok(())
}

fn check_setting(name: &ObjectName, rights: Rights) -> Result<()> {
    let name = name.to_string().to_lowercase().replace('"', "");
    let harmless = ["timezone", "time.zone"].contains(&name.as_str()) || HARMLESS.iter().any(|h| name.starts_with(h));
    ensure!(
        harmless || rights == Rights::Files && !name.starts_with("datafusion.runtime."),
        "the setting {name} is not one for a query to change ({}… may be set); --memory and --allow-files of `pipeline sql` \
         say what it may take and read",
        HARMLESS.join("…, ")
    );
    Ok(())
}

/// The same once more of the plan, for what the text does not show: `select … into` makes a table.
pub fn check_plan(
    plan: &LogicalPlan,
    statement: &Statement,
    rights: Rights,
) -> Result<(), datafusion::error::DataFusionError> {
    let makes = |s: &ast::Statement| {
        use ast::Statement::{CreateSchema, CreateTable, CreateView, Drop};
        matches!(s, CreateView(_) | CreateTable(_) | CreateSchema { .. } | Drop { .. })
    };
    let is_ddl = match statement {
        Statement::Statement(statement) => makes(statement),
        other => matches!(other, Statement::CreateExternalTable(_)),
    };
    let is_copy = rights == Rights::Files && contains_copy(statement);
    SQLOptions::new().with_allow_ddl(is_ddl).with_allow_dml(is_copy).verify_plan(plan)
}

/// `select …`, or another statement that must have columns.
pub fn is_query(statement: &Statement) -> bool {
    matches!(statement, Statement::Statement(s) if matches!(**s, ast::Statement::Query(_)))
}

/// `show tables`.
pub fn lists_tables(statement: &Statement) -> bool {
    matches!(statement, Statement::Statement(s) if matches!(**s, ast::Statement::ShowTables { .. }))
}

/// `create view …`.
pub fn names_a_query(statement: &Statement) -> bool {
    matches!(statement, Statement::Statement(s) if matches!(**s, ast::Statement::CreateView(_)))
}

/// `show …` of what is asked of all tables.
pub fn asks_about_the_session(statement: &Statement) -> bool {
    use ast::Statement::{ShowColumns, ShowCreate, ShowFunctions, ShowVariable};
    let is_show = |s: &ast::Statement| {
        matches!(s, ShowColumns { .. } | ShowCreate { .. } | ShowFunctions { .. } | ShowVariable { .. })
    };
    matches!(statement, Statement::Statement(s) if is_show(s))
}

fn contains_copy(statement: &Statement) -> bool {
    match statement {
        Statement::CopyTo(_) => true,
        Statement::Explain(explain) => contains_copy(&explain.statement),
        _ => false,
    }
}

/// # Errors
/// If a query of the user's own, which becomes a table, is not one `select` that gives the same rows every time.
pub fn check_own(sql: &str) -> Result<()> {
    let all = statements(sql)?;
    let [Statement::Statement(statement)] = all.as_slice() else {
        ensure!(all.len() < 2, "expected one query and found {} statements", all.len());
        bail!("expected a query (select …)");
    };
    let ast::Statement::Query(query) = &**statement else {
        bail!("expected a query (select …), which writes nothing")
    };
    let ControlFlow::Break(found) = query.visit(&mut Changing(SessionContext::new())) else { return Ok(()) };
    bail!("{found}");
}

/// Finds what gives other values another time, or writes.
struct Changing(SessionContext);

impl Visitor for Changing {
    type Break = String;

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<String> {
        let Expr::Function(function) = expr else { return ControlFlow::Continue(()) };
        let name = function.name.to_string().to_lowercase().replace('"', "");
        let state = self.0.state();
        let known = state.scalar_functions().get(&name).map(|f| f.signature().volatility);
        let known = known.or_else(|| state.aggregate_functions().get(&name).map(|f| f.signature().volatility));
        let changing = match known {
            Some(volatility) => volatility != Volatility::Immutable,
            None => ["current_date", "current_time", "current_timestamp", "today"].contains(&name.as_str()),
        };
        if !changing {
            return ControlFlow::Continue(());
        }
        ControlFlow::Break(format!("{name}() is not deterministic, and a table must have the same rows every time"))
    }

    fn pre_visit_query(&mut self, query: &ast::Query) -> ControlFlow<String> {
        let writes = match &*query.body {
            ast::SetExpr::Insert(_) | ast::SetExpr::Update(_) | ast::SetExpr::Delete(_) | ast::SetExpr::Merge(_) => {
                true
            }
            ast::SetExpr::Select(select) => select.into.is_some(),
            _ => false,
        };
        match writes {
            true => ControlFlow::Break("expected a query (select …), which writes nothing".to_string()),
            false => ControlFlow::Continue(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(sql: &str, rights: Rights) -> Result<()> {
        statements(sql)?.iter().try_for_each(|s| check(s, rights, |name| name == "heads"))
    }

    #[test]
    fn what_only_reads_the_run_is_allowed() {
        for sql in [
            "select 1",
            "with a as (select 1) select * from a union all values (2)",
            "explain analyze select 1",
            "explain verbose select 1",
            "describe heads",
            "show tables",
            "show columns from heads",
            "show all",
            "set time zone = '+00:00'",
            "set datafusion.explain.logical_plan_only = true",
            "create view mine as select * from heads",
            "create or replace view mine as select * from heads",
            "drop view mine",
        ] {
            checked(sql, Rights::Tables).unwrap_or_else(|e| panic!("{sql}: {e}"));
        }
    }

    #[test]
    fn what_reads_or_writes_files_is_refused_unless_it_is_allowed() {
        for sql in [
            "create external table p (line varchar) stored as csv location '/etc/passwd'",
            "copy (select 1) to '/tmp/x.csv'",
            "explain analyze copy (select 1) to '/tmp/x.csv'",
            "create table mine as select 1",
            "drop table mine",
            "create schema s",
            "set datafusion.execution.batch_size = 1",
        ] {
            let error = checked(sql, Rights::Tables).unwrap_err().to_string();
            assert!(error.contains("--allow-files"), "{sql}: {error}");
            checked(sql, Rights::Files).unwrap_or_else(|e| panic!("{sql}: {e}"));
        }
    }

    #[test]
    fn what_changes_the_run_or_takes_more_than_it_may_is_never_allowed() {
        for sql in [
            "insert into tokens select * from tokens",
            "explain analyze insert into tokens select * from tokens",
            "delete from tokens",
            "update tokens set prompt = 1",
            "create or replace view heads as select 1",
            "create view public.HEADS as select 1",
            "create or replace table heads as select 1",
            "drop view heads",
            "drop table datafusion.public.heads",
            "create external table heads (line varchar) stored as csv location '/etc/passwd'",
            "set datafusion.runtime.memory_limit = '900G'",
            "reset datafusion.runtime.memory_limit",
            "set datafusion.runtime.temp_directory = '/etc'",
            "prepare p as insert into tokens select * from tokens",
            "execute p",
            "use other",
            "load 'x'",
            "install 'x'",
            "create function f(x int) returns int return 1",
            "commit",
        ] {
            assert!(checked(sql, Rights::Files).is_err(), "{sql}");
            assert!(checked(sql, Rights::Tables).is_err(), "{sql}");
        }
    }

    #[test]
    fn an_own_query_is_one_select_that_gives_the_same_rows_every_time() {
        for sql in ["select 1", "-- a comment\nselect abs(x) from t;", "with a as (select 1) select * from a"] {
            check_own(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
        }
        for (sql, words) in [
            ("", "expected a query"),
            ("select 1; select 2", "found 2 statements"),
            ("create or replace view head_summary as select 1", "expected a query"),
            ("explain select 1", "expected a query"),
            ("copy (select 1) to '/tmp/x'", "expected a query"),
            ("select 1 into head_summary", "writes nothing"),
            ("select x from (select random() as x)", "random()"),
            ("select x from t where exists (select 1 from t order by RANDOM())", "random()"),
            ("select uuid()", "uuid()"),
            ("with a as (select current_timestamp) select * from a", "current_timestamp"),
        ] {
            let error = check_own(sql).unwrap_err().to_string();
            assert!(error.contains(words), "{sql}: {error}");
        }
    }
}
