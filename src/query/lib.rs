//! SQL over the tables of runs with DataFusion: sessions, the analyses in `sql/`, the checks, and the catalog of
//! tables.

// What is read here comes from outside: it is an error where it is wrong, and no panic.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::get_unwrap
    )
)]

pub mod analyze;
pub mod catalog;
pub mod older;
pub mod sql;
