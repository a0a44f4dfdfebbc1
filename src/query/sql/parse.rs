//! Parses SQL text into statements, with long chains of operators kept shallow.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use anyhow::{Result, anyhow, bail};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{self as logical, ExprSchemable, LogicalPlan};
use datafusion::sql::parser::{CopyToSource, DFParserBuilder, Statement};
use datafusion::sql::sqlparser::ast::{BinaryOperator, Expr, Ident, VisitMut, VisitorMut};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer, Whitespace};

use super::from_first::with_select;
use super::stack::on_large_stack;
use super::{errors, size};

/// The statements of a text, which `;` separates.
///
/// # Errors
/// If the text is no SQL, or too large to be planned.
pub fn statements(sql: &str) -> Result<Vec<Statement>> {
    size::check_text(sql)?;
    on_large_stack(|| {
        let parsed = parsed(sql).map_err(|e| anyhow!(errors::explain(&e, sql, &[], &[])))?;
        let mut statements: Vec<Statement> = parsed.into_iter().collect();
        statements.iter_mut().try_for_each(prepare)?;
        statements.iter().try_for_each(size::check_queries)?;
        Ok(statements)
    })?
}

fn parsed(sql: &str) -> Result<VecDeque<Statement>, DataFusionError> {
    let tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize_with_location().map_err(ParserError::from)?;
    DFParserBuilder::new(with_select(tokens)).build()?.parse_statements()
}

/// Whether the text names a parameter, `$name`. What stands in a text or a comment is none.
pub fn has_parameters(sql: &str) -> bool {
    let tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize();
    tokens.is_ok_and(|tokens| tokens.iter().any(|t| matches!(t, Token::Placeholder(_))))
}

/// The text with blanks for what stands in texts and comments, every other character at its place.
pub fn without_texts(sql: &str) -> String {
    let Ok(tokens) = Tokenizer::new(&GenericDialect {}, sql).tokenize_with_location() else { return sql.to_string() };
    let blank = |token: &Token| match token {
        Token::Whitespace(Whitespace::SingleLineComment { .. } | Whitespace::MultiLineComment(_)) => true,
        Token::DoubleQuotedString(_) => false,
        other => is_text(other),
    };
    let spans: Vec<_> = tokens.iter().filter(|t| blank(&t.token)).map(|t| t.span).collect();
    let mut spans = spans.iter().peekable();
    let (mut out, mut line, mut column) = (String::with_capacity(sql.len()), 1, 1);
    for c in sql.chars() {
        while spans.next_if(|span| (span.end.line, span.end.column) <= (line, column)).is_some() {}
        let inside = spans.peek().is_some_and(|span| (span.start.line, span.start.column) <= (line, column));
        out.push(if inside && c != '\n' { ' ' } else { c });
        (line, column) = if c == '\n' { (line + 1, 1) } else { (line, column + 1) };
    }
    out
}

pub fn is_text(token: &Token) -> bool {
    matches!(
        token,
        Token::SingleQuotedString(_)
            | Token::DoubleQuotedString(_)
            | Token::DollarQuotedString(_)
            | Token::EscapedStringLiteral(_)
            | Token::UnicodeStringLiteral(_)
            | Token::NationalStringLiteral(_)
            | Token::HexStringLiteral(_)
    )
}

/// # Errors
/// If an operator on bits is given a number that is not whole: the engine would cut it to one without a word.
pub fn check_bits(plan: &LogicalPlan) -> Result<(), DataFusionError> {
    plan.apply_with_subqueries(|step| {
        let inputs: Vec<_> = step.inputs().into_iter().map(LogicalPlan::schema).collect();
        step.apply_expressions(|expr| {
            expr.apply(|expr| {
                let logical::Expr::BinaryExpr(binary) = expr else { return Ok(TreeNodeRecursion::Continue) };
                let is_fraction = |side: &logical::Expr| {
                    let mut types = inputs.iter().filter_map(|schema| side.get_type(schema.as_ref()).ok());
                    types.any(|t| t.is_numeric() && !t.is_integer())
                };
                match is_bitwise(binary.op) && (is_fraction(&binary.left) || is_fraction(&binary.right)) {
                    false => Ok(TreeNodeRecursion::Continue),
                    true => Err(DataFusionError::Plan(format!(
                        "`{}` works on integers, and `{}` is not one; cast it to an integer",
                        binary.op,
                        if is_fraction(&binary.left) { &binary.left } else { &binary.right }
                    ))),
                }
            })
        })
    })?;
    Ok(())
}

fn is_bitwise(op: logical::Operator) -> bool {
    use logical::Operator::{BitwiseAnd, BitwiseOr, BitwiseShiftLeft, BitwiseShiftRight, BitwiseXor};
    matches!(op, BitwiseAnd | BitwiseOr | BitwiseXor | BitwiseShiftLeft | BitwiseShiftRight)
}

fn prepare(statement: &mut Statement) -> Result<()> {
    let visited = match statement {
        Statement::Statement(statement) => statement.visit(&mut Prepare),
        Statement::Explain(explain) => return prepare(&mut explain.statement),
        Statement::CopyTo(copy) => match &mut copy.source {
            CopyToSource::Query(query) => query.visit(&mut Prepare),
            CopyToSource::Relation(_) => ControlFlow::Continue(()),
        },
        Statement::CreateExternalTable(_) | Statement::Reset(_) => ControlFlow::Continue(()),
    };
    match visited {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(advice) => bail!("{advice}"),
    }
}

/// Said of an operator that means something else than who writes it expects.
const CARET: &str = "`^` is not supported; write power(x, 2) for the square of x";

/// Conditions in one chain of `and`, which the engine takes apart and puts together again one within another.
const ALL_OF: usize = 2000;

const TOO_MANY: &str = "more than 2000 conditions are joined by one chain of `and`; use `not in (…)` or `in (…)`, or join a table of the values";

/// `a or b or c or d` is parsed as `((a or b) or c) or d`, as deep as it is long. `(a or b) or (c or d)` says the same and
/// is as deep as the logarithm.
struct Prepare;

/// Chains up to here stay as they are.
const SHORT: usize = 32;

impl VisitorMut for Prepare {
    type Break = &'static str;

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<&'static str> {
        match expr {
            Expr::BinaryOp { op: BinaryOperator::And, .. } => {
                balance(expr);
                if all_of(expr) > ALL_OF {
                    return ControlFlow::Break(TOO_MANY);
                }
            }
            Expr::BinaryOp { op: BinaryOperator::Or, .. } => balance(expr),
            Expr::BinaryOp { op: BinaryOperator::BitwiseXor, .. } => return ControlFlow::Break(CARET),
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

/// How many conditions a chain of `and` has, parentheses or not.
fn all_of(expr: &Expr) -> usize {
    let (mut pending, mut count) = (vec![expr], 0);
    while let Some(expr) = pending.pop() {
        match expr {
            Expr::BinaryOp { left, op: BinaryOperator::And, right } => pending.extend([left.as_ref(), right.as_ref()]),
            Expr::Nested(inner) => pending.push(inner),
            _ => count += 1,
        }
    }
    count
}

/// Rebuilds one chain of the same operator; the parts keep their order.
fn balance(expr: &mut Expr) {
    let Expr::BinaryOp { op: of_chain, .. } = &*expr else { return };
    let of_chain = of_chain.clone();
    let (mut length, mut at): (usize, &Expr) = (0, expr);
    while let Expr::BinaryOp { left, op, .. } = at
        && *op == of_chain
    {
        length += 1;
        at = left.as_ref();
    }
    if length <= SHORT {
        return;
    }
    let mut parts = Vec::with_capacity(length + 1);
    let mut rest = std::mem::replace(expr, Expr::Identifier(Ident::new("")));
    loop {
        match rest {
            Expr::BinaryOp { left, op, right } if op == of_chain => {
                parts.push(*right);
                rest = *left;
            }
            first => {
                parts.push(first);
                break;
            }
        }
    }
    parts.reverse();
    // Neighbours are joined until one is left.
    while parts.len() > 1 {
        let mut halved = Vec::with_capacity(parts.len().div_ceil(2));
        let mut pairs = parts.into_iter();
        while let Some(left) = pairs.next() {
            halved.push(match pairs.next() {
                Some(right) => Expr::BinaryOp { left: Box::new(left), op: of_chain.clone(), right: Box::new(right) },
                None => left,
            });
        }
        parts = halved;
    }
    if let Some(whole) = parts.pop() {
        *expr = whole;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(sql: &str) -> String {
        statements(sql).unwrap_err().to_string()
    }

    #[test]
    fn long_chains_of_conditions_keep_their_order_and_lose_their_depth() {
        fn depth(expr: &Expr) -> usize {
            match expr {
                Expr::BinaryOp { left, right, .. } => 1 + depth(left).max(depth(right)),
                _ => 0,
            }
        }
        fn leaves(expr: &Expr, out: &mut Vec<String>) {
            match expr {
                Expr::BinaryOp { left, op: BinaryOperator::Or, right } => {
                    leaves(left, out);
                    leaves(right, out);
                }
                other => out.push(other.to_string()),
            }
        }
        let terms: Vec<String> = (0..3000).map(|i| format!("a = {i} AND b = {i}")).collect();
        let mut parsed = statements(&format!("select 1 from t where {}", terms.join(" or "))).unwrap();
        let Statement::Statement(statement) = parsed.remove(0) else { panic!() };
        let datafusion::sql::sqlparser::ast::Statement::Query(query) = *statement else { panic!() };
        let datafusion::sql::sqlparser::ast::SetExpr::Select(select) = *query.body else { panic!() };
        let condition = select.selection.unwrap();
        assert!(depth(&condition) < 16, "{}", depth(&condition));
        let mut found = Vec::new();
        leaves(&condition, &mut found);
        assert_eq!(found, terms);
    }

    #[test]
    fn what_stands_in_a_text_or_a_comment_is_no_syntax() {
        for sql in ["select '$5', 'it''s $x' -- $y", "select /* $a */ 1, 'a ^ b'", "select $$a $b ^ c$$"] {
            assert!(!has_parameters(sql), "{sql}");
            statements(sql).unwrap();
        }
        assert!(has_parameters("select '$5', $top_fraction"));
        assert_eq!(statements("select ';', '--', '/*', '\"'; select 2").unwrap().len(), 2);
        assert_eq!(without_texts("select 'añ',\n  \"a\" -- a\n, a"), "select     ,\n  \"a\"     \n, a");
    }

    #[test]
    fn a_long_chain_of_and_is_refused_with_or_without_parentheses() {
        let flat = vec!["a <> 1"; 3000].join(" and ");
        let half = vec!["a <> 1"; 1500].join(" and ");
        for condition in [flat, format!("({half}) and ({half})")] {
            assert!(error(&format!("select 1 from t where {condition}")).contains("more than 2000 conditions"));
        }
        statements(&format!("select 1 from t where {half}")).unwrap();
    }

    #[test]
    fn a_caret_is_refused_with_advice() {
        for sql in ["select x ^ 2 from t", "select 1 from t where sqrt(x^2 + 1) > 0", "explain select 2 ^ 3"] {
            assert!(error(sql).contains("power(x, 2)"), "{sql}: {}", error(sql));
        }
    }
}
