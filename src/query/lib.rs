//! SQL over the tables of runs with DataFusion: sessions, the analyses in `sql/`, the checks, and the catalog of
//! tables.

pub mod analyze;
pub mod catalog;
pub mod older;
pub mod sql;
