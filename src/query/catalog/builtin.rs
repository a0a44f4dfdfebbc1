//! The built-in tables.

use anyhow::{Context, Result};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::sql::parser::{DFParser, Statement};
use datafusion::sql::sqlparser::ast;

use super::{ColumnDoc, TableDoc, columns_of, type_name};
use crate::analyze::{COMPUTED, DERIVED, PAPER, Query, VIEWS, authors_schema, in_order, kind_and_grain, written_type};
use crate::sql::Planner;
use selfrepair_core::plain::visible;
use selfrepair_core::tables::{MEASURED, Table, sort_order};

/// A query to begin with, for tables that no file in `sql/` describes.
const EXAMPLES: [(&str, &str); 7] = [
    ("model", "select name, layers, heads, d_model from model"),
    ("tokens", "select prompt, position, text from tokens where prompt = 0 order by position limit 20"),
    ("pairs", "select prompt, partner from pairs where sample = 0 order by prompt limit 10"),
    ("clean", "select avg(log_prob) as log_prob, avg(logit) as logit from clean"),
    (
        "direct_effects",
        "select name, avg(direct_effect) as direct_effect\nfrom direct_effects group by name\n\
         order by direct_effect desc limit 10",
    ),
    (
        "ablations",
        "select name, avg(direct_effect) as direct_effect, avg(self_repair) as self_repair\nfrom ablations group by name\n\
         order by self_repair desc limit 10",
    ),
    (
        "repair_quantiles",
        "select layer, quantile, self_repair from repair_quantiles where quantile = 0.5 order by layer",
    ),
];

/// Every built-in table and view, in the order in which a run makes them.
pub fn built_in() -> Result<Vec<TableDoc>> {
    // Types of derived columns are what planning the queries over empty tables says.
    let planner = Planner::new()?;
    for table in MEASURED.into_iter().chain(COMPUTED) {
        planner.add(table.name, table.schema())?;
    }
    // What `analyze` lends to queries.
    planner.add("thresholds", Schema::new(vec![Field::new("threshold", DataType::Float64, false)]).into())?;
    planner.add("authors", authors_schema()?)?;
    let mut all: Vec<TableDoc> = MEASURED.iter().map(|t| of_table(t)).collect();
    for query in in_order(DERIVED.iter().chain(PAPER).collect())? {
        let schema = as_written(&planner.schema(&query.text).with_context(|| format!("in {}", query.file))?);
        planner.add(&query.name, schema.clone().into())?;
        all.push(of_query(query, &schema)?);
    }
    all.extend(COMPUTED.into_iter().map(of_table));
    for query in in_order(VIEWS.iter().collect())? {
        let schema = planner.schema(&query.text).with_context(|| format!("in {}", query.file))?;
        planner.add(&query.name, schema.clone().into())?;
        all.push(of_query(query, &schema)?);
    }
    Ok(all)
}

fn of_table(table: &Table) -> TableDoc {
    let schema = table.schema();
    TableDoc {
        name: table.name.to_string(),
        kind: kind_and_grain(table.name).0,
        question: String::new(),
        grain: table.grain.to_string(),
        key: sort_order(&schema, table.key).into_iter().map(|i| schema.field(i).name().clone()).collect(),
        columns: columns_of(&schema, |_| None),
        example: example(table.name),
    }
}

fn of_query(query: &Query, schema: &Schema) -> Result<TableDoc> {
    let described = query.columns();
    let column = |field: &arrow::datatypes::Field| {
        let (description, unit) = described.get(field.name().as_str()).cloned().unwrap_or_default();
        ColumnDoc { name: field.name().clone(), data_type: type_name(field.data_type()), unit, description }
    };
    Ok(TableDoc {
        name: query.name.to_string(),
        kind: kind_and_grain(&query.name).0,
        question: query.question(),
        grain: query.grain(),
        key: order_of(&query.text).with_context(|| format!("in {}", query.file))?,
        columns: schema.fields().iter().map(|f| column(f)).collect(),
        example: query.example().unwrap_or_else(|| example(&query.name)),
    })
}

/// A query that runs on any run that has the table.
pub fn example(name: &str) -> String {
    let known = EXAMPLES.iter().find(|(table, _)| *table == name);
    known.map_or_else(|| format!("select * from {} limit 10", visible(name)), |(_, query)| query.to_string())
}

/// The columns of a query as its table has them.
fn as_written(schema: &Schema) -> Schema {
    let written = |f: &arrow::datatypes::Field| f.clone().with_data_type(written_type(f.name(), f.data_type()));
    Schema::new(schema.fields().iter().map(|f| written(f)).collect::<Vec<_>>())
}

/// The columns that a query orders its rows by, as its result calls them.
fn order_of(sql: &str) -> Result<Vec<String>> {
    let statement = DFParser::parse_sql(sql)?.pop_front();
    let Some(Statement::Statement(statement)) = statement else { return Ok(Vec::new()) };
    let ast::Statement::Query(query) = *statement else { return Ok(Vec::new()) };
    let Some(ast::OrderByKind::Expressions(by)) = query.order_by.map(|o| o.kind) else { return Ok(Vec::new()) };
    let selected = match *query.body {
        ast::SetExpr::Select(select) => select.projection,
        _ => Vec::new(),
    };
    // `order by a.component` of what is selected as `a.component as repairer`.
    let alias = |ordered: &ast::Expr| {
        selected.iter().find_map(|item| match item {
            ast::SelectItem::ExprWithAlias { expr, alias } if expr == ordered => Some(alias.value.clone()),
            _ => None,
        })
    };
    let name = |expr: &ast::Expr| match expr {
        ast::Expr::Identifier(name) => name.value.clone(),
        ast::Expr::CompoundIdentifier(parts) => parts.last().map(|p| p.value.clone()).unwrap_or_default(),
        other => other.to_string(),
    };
    Ok(by.iter().map(|o| alias(&o.expr).unwrap_or_else(|| name(&o.expr))).collect())
}
