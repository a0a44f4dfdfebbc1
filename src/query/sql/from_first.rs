//! Queries that begin with `from`, as DuckDB reads them: `from heads where layer = 3` selects every column.

use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Whitespace};

/// The tokens with `select *` before each query that begins with `from` and has no `select`. They have the place of that
/// `from`, so that errors show the text as it was written.
pub fn with_select(tokens: Vec<TokenWithSpan>) -> Vec<TokenWithSpan> {
    let places = places(&tokens);
    let mut places = places.into_iter().peekable();
    let mut out = Vec::with_capacity(tokens.len());
    for (i, token) in tokens.into_iter().enumerate() {
        if places.next_if_eq(&i).is_some() {
            let blank = || Token::Whitespace(Whitespace::Space);
            let inserted = [Token::make_keyword("SELECT"), blank(), Token::Mul, blank()];
            out.extend(inserted.map(|inserted| TokenWithSpan::new(inserted, token.span)));
        }
        out.push(token);
    }
    out
}

/// What may come next in a query, or in what stands between parentheses.
#[derive(Clone, Copy, PartialEq)]
enum Next {
    /// Anything: it begins here.
    First,
    /// A query, after a `with`, `explain` or `create`.
    Main,
    /// A query, after a `union`, `except` or `intersect`.
    Operand,
    /// No query of this level.
    Rest,
}

#[derive(Clone, Copy)]
struct Level {
    next: Next,
    /// The `from` that the query begins with, while no `select` has come.
    from: Option<usize>,
}

const NEW: Level = Level { next: Next::First, from: None };

/// Which `from` begin a query that has no `select`.
fn places(tokens: &[TokenWithSpan]) -> Vec<usize> {
    let mut places = Vec::new();
    let (mut level, mut outer) = (NEW, Vec::new());
    for (i, token) in tokens.iter().enumerate() {
        match &token.token {
            Token::Whitespace(_) => {}
            Token::LParen => {
                outer.push(Level { next: if level.next == Next::Main { Next::Main } else { Next::Rest }, ..level });
                level = NEW;
            }
            Token::RParen => {
                places.extend(level.from);
                level = outer.pop().unwrap_or(NEW);
            }
            Token::SemiColon => {
                places.extend(level.from);
                level = NEW;
            }
            Token::Word(word) => match (word.keyword, level.next) {
                (Keyword::FROM, Next::First | Next::Main | Next::Operand) => {
                    level = Level { next: Next::Rest, from: Some(i) };
                }
                (Keyword::SELECT, _) => level = Level { next: Next::Rest, from: None },
                (Keyword::UNION | Keyword::EXCEPT | Keyword::INTERSECT, _) => {
                    places.extend(level.from);
                    level = Level { next: Next::Operand, from: None };
                }
                (Keyword::ALL | Keyword::DISTINCT | Keyword::BY | Keyword::NAME, Next::Operand) => {}
                (Keyword::WITH | Keyword::EXPLAIN | Keyword::CREATE, Next::First) => level.next = Next::Main,
                (Keyword::DELETE | Keyword::INSERT | Keyword::UPDATE | Keyword::MERGE, _) => level.next = Next::Rest,
                (_, Next::Main) => {}
                // `extract(year from day)`, `* except (layer)`
                _ => level.next = Next::Rest,
            },
            _ if level.next == Next::Main => {}
            _ => level.next = Next::Rest,
        }
    }
    places.extend(level.from);
    places.extend(outer.into_iter().filter_map(|level| level.from));
    places.sort_unstable();
    places
}

#[cfg(test)]
mod tests {
    use crate::sql::parse::statements;

    #[test]
    fn a_query_that_begins_with_from_selects_every_column() {
        for (sql, expected) in [
            ("from heads limit 1", "SELECT * FROM heads LIMIT 1"),
            ("from heads where layer = 3", "SELECT * FROM heads WHERE layer = 3"),
            (
                "FROM heads h -- all\nWHERE h.layer > 3 ORDER BY h.layer",
                "SELECT * FROM heads h WHERE h.layer > 3 ORDER BY h.layer",
            ),
            ("from a join b using (x) where y > 1", "SELECT * FROM a JOIN b USING(x) WHERE y > 1"),
            ("from (from a where x = 1) b where y = 2", "SELECT * FROM (SELECT * FROM a WHERE x = 1) b WHERE y = 2"),
            (
                "with a as (from b where x = 1) from a where y = 2",
                "WITH a AS (SELECT * FROM b WHERE x = 1) SELECT * FROM a WHERE y = 2",
            ),
            ("select 1 from a union all from b where x = 1", "SELECT 1 FROM a UNION ALL SELECT * FROM b WHERE x = 1"),
            (
                "from a where x = 1 union from b where x = 2",
                "SELECT * FROM a WHERE x = 1 UNION SELECT * FROM b WHERE x = 2",
            ),
            (
                "select 1 from a where exists (from b where x = 1)",
                "SELECT 1 FROM a WHERE EXISTS (SELECT * FROM b WHERE x = 1)",
            ),
            ("create view v as from a where x = 1", "CREATE VIEW v AS SELECT * FROM a WHERE x = 1"),
            ("from a where x is distinct from y", "SELECT * FROM a WHERE x IS DISTINCT FROM y"),
        ] {
            assert_eq!(statements(sql).unwrap()[0].to_string(), statements(expected).unwrap()[0].to_string(), "{sql}");
        }
        assert_eq!(statements("from a where x = 1; from b where x = 2; select 1").unwrap().len(), 3);
    }

    #[test]
    fn a_from_that_begins_no_query_stays_as_it_is() {
        for sql in [
            "SELECT * EXCEPT (layer) FROM a",
            "SELECT EXTRACT(YEAR FROM day) FROM a",
            "SELECT SUBSTRING(x FROM 2 FOR 3), TRIM(BOTH ' ' FROM y) FROM a",
            "SELECT x IS DISTINCT FROM y FROM a",
            "DELETE FROM a WHERE x = 1",
            "SELECT 'from a where', \"from\" FROM a",
            "FROM a SELECT x WHERE y = 1",
        ] {
            assert_eq!(statements(sql).unwrap()[0].to_string(), sql);
        }
    }
}
