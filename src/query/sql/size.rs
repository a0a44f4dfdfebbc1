//! Limits on the size of a query: its text, its depth, and its plan with all views expanded.

use std::borrow::Cow;
use std::ops::ControlFlow;

use anyhow::{Result, bail, ensure};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::parser::{CopyToSource, Statement};
use datafusion::sql::sqlparser::ast::{ObjectName, Query, Visit, Visitor};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

use super::parse::is_text;

/// Bytes of text.
const LONGEST: usize = 8 << 20;

/// Operators of which each takes what stands before it, `1 + 1 + …`, and joins, unions and brackets alike: that many
/// calls of a function from within itself.
const DEEPEST: usize = 500;

/// As [`DEEPEST`], with the branches of a `case` counted as if they stood one within another. Which word ends a `case`
/// cannot be told from the words alone, so that what is around it counts on over its branches.
const DEEPEST_WITH_CASES: usize = 2000;

/// `and` and `or`, which are not deep (see `parse`) but take time.
const CONDITIONS: usize = 50_000;

/// One pair of parentheses, or the whole text: how deep its expressions are.
#[derive(Default)]
struct Level {
    /// Operators since the last separator.
    operators: usize,
    /// The deepest pair of parentheses since the last separator.
    inner: usize,
    /// The deepest expression before the last separator.
    before: usize,
    /// Joins of this `from`, and whether the text is still in it.
    joins: usize,
    in_from: bool,
    /// The deepest `select` of a union so far, and how many it has.
    selects: usize,
    unions: usize,
    /// `between`s whose `and`, which joins no conditions, is still to come.
    betweens: usize,
    /// Whether the next `group` is that of `within group`, which ends nothing.
    within: bool,
}

impl Level {
    fn depth(&self) -> usize {
        self.unions + self.selects.max(self.joins + self.before.max(self.operators + self.inner))
    }

    /// What follows stands beside what was before, not around it.
    fn separate(&mut self) {
        self.before = self.before.max(self.operators + self.inner);
        (self.operators, self.inner) = (0, 0);
    }

    /// As [`Level::separate`], with another `from`.
    fn next_select(&mut self) {
        self.separate();
        self.selects = self.selects.max(self.joins + self.before);
        (self.before, self.joins, self.in_from) = (0, 0, false);
    }
}

/// Compares the depth of the text with what is allowed, without a call of a function from within itself.
pub fn check_text(sql: &str) -> Result<()> {
    ensure!(
        sql.len() <= LONGEST,
        "the query has {} bytes, and at most {LONGEST} are read; put its values into a table, or split the query",
        sql.len()
    );
    // What cannot be cut into words is left for the parser to say.
    let Ok(tokens) = Tokenizer::new(&GenericDialect {}, sql).tokenize() else { return Ok(()) };
    check_depth(&tokens, true, DEEPEST)?;
    check_depth(&tokens, false, DEEPEST_WITH_CASES)
}

/// `branches_are_apart`: those of a `case` stand beside each other.
fn check_depth(tokens: &[Token], branches_are_apart: bool, deepest: usize) -> Result<()> {
    let mut levels = vec![Level::default()];
    let mut conditions = 0;
    for token in tokens {
        let depth = levels.len();
        let Some(level) = levels.last_mut() else { break };
        match token {
            Token::LParen | Token::LBrace | Token::LBracket => {
                level.operators += usize::from(*token == Token::LBracket);
                ensure_depth(depth, deepest)?;
                levels.push(Level::default());
            }
            Token::RParen | Token::RBrace | Token::RBracket if depth > 1 => {
                let inner = level.depth() + 1;
                ensure_depth(inner, deepest)?;
                levels.pop();
                if let Some(outer) = levels.last_mut() {
                    outer.inner = outer.inner.max(inner);
                }
            }
            Token::Comma => {
                level.joins += usize::from(level.in_from);
                level.separate();
            }
            Token::SemiColon => levels = vec![Level::default()],
            Token::Word(word) if !branches_are_apart && is_branch(word.keyword) => {}
            Token::Word(word) => conditions += keyword(level, word.keyword),
            Token::Number(..) | Token::Whitespace(_) | Token::Period | Token::EOF | Token::Placeholder(_) => {}
            text if is_text(text) => {}
            _ => level.operators += 1,
        }
        ensure_depth(levels.last().map_or(0, Level::depth), deepest)?;
        ensure!(
            conditions <= CONDITIONS,
            "the query has more than {CONDITIONS} conditions joined by `and` and `or`; use `in (…)`, or join a table of them"
        );
    }
    Ok(())
}

fn ensure_depth(depth: usize, deepest: usize) -> Result<()> {
    ensure!(
        depth <= deepest,
        "the query is too deep: more than {deepest} operators, joins, unions or parentheses are nested; split the \
        query, or use `in (…)` or a table of the values"
    );
    Ok(())
}

fn is_branch(keyword: Keyword) -> bool {
    matches!(keyword, Keyword::WHEN | Keyword::THEN | Keyword::ELSE)
}

/// What a keyword does to the depth; how many conditions it joins.
fn keyword(level: &mut Level, keyword: Keyword) -> usize {
    match keyword {
        Keyword::AND if level.betweens > 0 => level.betweens -= 1,
        Keyword::BETWEEN => {
            level.operators += 1;
            level.betweens += 1;
        }
        Keyword::WITHIN => level.within = true,
        Keyword::GROUP if level.within => level.within = false,
        Keyword::AND | Keyword::OR => {
            level.separate();
            return 1;
        }
        Keyword::UNION | Keyword::EXCEPT | Keyword::INTERSECT | Keyword::MINUS => {
            level.next_select();
            level.unions += 1;
        }
        Keyword::JOIN | Keyword::APPLY => level.joins += 1,
        Keyword::FROM => {
            level.separate();
            level.in_from = true;
        }
        Keyword::WHERE | Keyword::GROUP | Keyword::HAVING | Keyword::ORDER | Keyword::LIMIT | Keyword::QUALIFY => {
            level.separate();
            level.in_from = false;
        }
        Keyword::SELECT | Keyword::ON | Keyword::USING | Keyword::WHEN | Keyword::THEN | Keyword::ELSE => {
            level.separate();
        }
        Keyword::NOT
        | Keyword::IS
        | Keyword::IN
        | Keyword::LIKE
        | Keyword::ILIKE
        | Keyword::SIMILAR
        | Keyword::RLIKE
        | Keyword::REGEXP
        | Keyword::OVERLAPS
        | Keyword::OPERATOR
        | Keyword::MEMBER
        | Keyword::PIVOT
        | Keyword::UNPIVOT
        | Keyword::XOR
        | Keyword::DIV
        | Keyword::COLLATE
        | Keyword::AT
        | Keyword::CASE
        | Keyword::EXPLAIN
        | Keyword::PREPARE
        | Keyword::ARRAY
        | Keyword::INTERVAL => level.operators += 1,
        _ => {}
    }
    0
}

/// # Errors
/// If the `with` queries of a statement expand to too many steps: each may read the one before twice.
pub fn check_queries(statement: &Statement) -> Result<()> {
    let mut weigh = Weigh { open: vec![Open::default()] };
    let visited = match statement {
        Statement::Statement(statement) => statement.visit(&mut weigh),
        Statement::Explain(explain) => return check_queries(&explain.statement),
        Statement::CopyTo(copy) => match &copy.source {
            CopyToSource::Query(query) => query.visit(&mut weigh),
            CopyToSource::Relation(_) => return Ok(()),
        },
        Statement::CreateExternalTable(_) | Statement::Reset(_) => return Ok(()),
    };
    match visited {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => bail!(too_large()),
    }
}

fn too_large() -> String {
    format!(
        "the query is too large: with views and `with` queries expanded, it has more than {STEPS} steps, or more than \
        {DEEPEST} nested ones; split the query"
    )
}

/// The expanded size of a query: its number of tables and queries, and how deep they are nested.
#[derive(Clone, Copy)]
struct Size {
    steps: usize,
    depth: usize,
}

const ONE: Size = Size { steps: 1, depth: 1 };

/// A query that is being read.
#[derive(Default)]
struct Open {
    steps: usize,
    depth: usize,
    /// Where the queries lie that its `with` names, and the names.
    with: Vec<(*const Query, String)>,
    /// The expanded sizes of the queries read so far.
    named: Vec<(String, Size)>,
}

struct Weigh {
    open: Vec<Open>,
}

impl Weigh {
    fn add(&mut self, size: Size) -> ControlFlow<()> {
        let Some(open) = self.open.last_mut() else { return ControlFlow::Continue(()) };
        open.steps = open.steps.saturating_add(size.steps);
        open.depth = open.depth.max(size.depth);
        if open.steps > STEPS || open.depth > DEEPEST { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl Visitor for Weigh {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let with = query.with.iter().flat_map(|with| &with.cte_tables);
        let with = with.map(|cte| (std::ptr::from_ref(&*cte.query), cte.alias.name.value.to_lowercase())).collect();
        self.open.push(Open { with, ..Default::default() });
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        let name = relation.to_string().replace('"', "").to_lowercase();
        let mut named = self.open.iter().rev().flat_map(|open| open.named.iter().rev());
        let size = named.find(|(n, _)| *n == name).map_or(ONE, |(_, size)| *size);
        self.add(size)
    }

    fn post_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let Some(closed) = self.open.pop() else { return ControlFlow::Continue(()) };
        let size = Size { steps: closed.steps.saturating_add(1), depth: closed.depth + 1 };
        let Some(outer) = self.open.last_mut() else { return ControlFlow::Continue(()) };
        match outer.with.iter().find(|(place, _)| std::ptr::eq(*place, query)) {
            Some((_, name)) => {
                let name = name.clone();
                outer.named.push((name, size));
                ControlFlow::Continue(())
            }
            None => self.add(size),
        }
    }
}

/// Steps of a plan. A query that reads another one twice, which reads a third one twice …, has more than there is memory.
const STEPS: usize = 20_000;

/// # Errors
/// If a plan has too many steps, or they stand too deep one within another.
pub fn check_plan_size(plan: &LogicalPlan) -> Result<(), DataFusionError> {
    let (mut pending, mut steps) = (vec![(plan, 1)], 0);
    while let Some((step, depth)) = pending.pop() {
        steps += 1;
        if steps > STEPS || depth > 2 * DEEPEST {
            return Err(DataFusionError::Plan(too_large()));
        }
        if let LogicalPlan::TableScan(scan) = step
            && let Some(Cow::Borrowed(view)) = scan.source.get_logical_plan()
        {
            pending.push((view, depth + 1));
        }
        pending.extend(step.inputs().into_iter().map(|input| (input, depth + 1)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::parse::statements;
    use super::*;

    fn error(sql: &str) -> String {
        statements(sql).unwrap_err().to_string()
    }

    #[test]
    fn what_is_too_deep_is_an_error_of_whatever_it_is_made() {
        for deep in [
            format!("select {}", vec!["1"; 10_000].join("+")),
            format!("select {}", vec!["'a'"; 5000].join("||")),
            format!("select {}1", "1 + (".repeat(5000)),
            format!("select {}1{}", "(".repeat(100_000), ")".repeat(100_000)),
            format!("select {}1{}", "(1+".repeat(300), "+1)".repeat(300)),
            vec!["select 1"; 5000].join(" union all "),
            format!("select 1 from {}", (0..5000).map(|i| format!("t t{i}")).collect::<Vec<_>>().join(", ")),
            format!("select 1 from t {}", "join t using (a) ".repeat(5000)),
            format!("select 1{}", "::int".repeat(100_000)),
            format!("select x{}", "[1]".repeat(100_000)),
            format!("select cast(1 as int{})", "[]".repeat(100_000)),
            format!("{}select 1", "explain ".repeat(100_000)),
            format!("select {}true", "not ".repeat(100_000)),
            format!("select {}1", "- ".repeat(100_000)),
            format!("select 1{}", " is null".repeat(100_000)),
            format!("select 1{}", " between 1 and 2".repeat(40_000)),
            format!("select 1{}", " not between 1 and 2".repeat(40_000)),
            format!("select {}", vec!["case when true then 1 end"; 100_000].join(" + ")),
            format!("select case when {} then 1 end", vec!["case when true then 1 else 2 end"; 100_000].join(" + ")),
            // A column may be called `end`, a type `case`.
            format!("select case when 1{} then 1 end", " + case end when 1 then 1::case end".repeat(50_000)),
            format!("select {}", vec!["f(1) within group (order by x)"; 50_000].join(" + ")),
            format!("select 1{}", " overlaps 1".repeat(100_000)),
            format!("select 1{}", " operator(+) 1".repeat(100_000)),
            format!("select 1{}", " member of(1)".repeat(100_000)),
            format!("select * from t{}", " pivot(sum(a) for b in (c))".repeat(50_000)),
            format!("select * from t{}", " unpivot(a for b in (c))".repeat(100_000)),
        ] {
            let said = error(&deep);
            assert!(said.contains("too deep"), "{}: {said}", &deep[..40]);
        }
        let many = format!("select {}", vec!["a = 1"; 60_000].join(" or "));
        assert!(error(&many).contains("more than 50000 conditions"), "{}", error(&many));
        let long = format!("select '{}'", "x".repeat(LONGEST));
        assert!(error(&long).contains("bytes"), "{}", error(&long));
    }

    #[test]
    fn what_is_long_and_not_deep_is_read() {
        let numbers = (0..10_000).map(|i| i.to_string()).collect::<Vec<_>>();
        let columns = (0..2000).map(|i| format!("a.x{i} + 1 as y{i}")).collect::<Vec<_>>();
        for sql in [
            format!("select 1 from t where x in ({})", numbers.join(", ")),
            format!("select {} from t", columns.join(", ")),
            format!("values {}", numbers.iter().map(|n| format!("({n})")).collect::<Vec<_>>().join(", ")),
            format!("select {}", vec!["1"; 400].join(" + ")),
            format!("select 1 from t where {}", vec!["a between 1 and 2"; 1500].join(" and ")),
            format!("select case x {} end", "when 1 then 2 ".repeat(5000)),
            format!("select case {} end", "when x = 1 then 2 ".repeat(1500)),
            format!("select {}", vec!["sum(case when a = 1 then 1 else 0 end)"; 1000].join(", ")),
            vec!["select 1"; 2000].join("; "),
        ] {
            assert!(statements(&sql).is_ok(), "{}", &sql[..40]);
        }
    }

    #[test]
    fn queries_that_read_each_other_twice_or_in_a_long_chain_are_refused() {
        let named = |n: usize, of: fn(usize) -> String| -> String {
            (1..n).map(|i| format!(", a{i} as ({})", of(i - 1))).collect()
        };
        let twice = |i: usize| format!("select * from a{i} union all select * from a{i}");
        let once = |i: usize| format!("select * from a{i}");
        for deep in [
            format!("with a0 as (select 1){} select * from a39", named(40, twice)),
            format!("with a0 as (select 1){} select * from a1999", named(2000, once)),
            // The inner ones count as often as they are read.
            format!(
                "with b as (with a0 as (select 1){0} select * from a9), c as (with a0 as (select * from b){0} select * from a9) \
                     select * from c",
                named(10, twice)
            ),
        ] {
            assert!(error(&deep).contains("too large"), "{}", &deep[..40]);
        }
        let many = (0..2000).map(|i| format!("a{i} as (select {i})")).collect::<Vec<_>>().join(", ");
        statements(&format!("with {many} select * from a1999")).unwrap();
        // The same name in another place is another query.
        statements(
            "with a as (select 1) select * from (with a as (select 2) select * from a) union all select * from a",
        )
        .unwrap();
    }
}
