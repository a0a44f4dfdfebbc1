//! The measurement of self-repair (Rushing & Nanda, arXiv 2402.15390). A clean pass over all prompts comes first. Then
//! every selected component is ablated, and only what follows it runs again.
//!
//! [`trace`] and [`ablate`] take a [`MeasureContext`] and give the rows of their tables to its
//! [`RowSink`](selfrepair_core::sink::RowSink). They do not depend on folders, Parquet or SQL. `docs/definitions.md`
//! has the definitions; [`Repair`] cites them.

pub mod ablate;
mod activations;
mod context;
mod cost;
pub mod iterate;
mod repair;
mod trace;

pub use activations::name as activation_name;
pub use context::{MeasureContext, RowsPerCall};
pub use cost::{ablate_flops, flops_of_token, trace_flops};
pub use repair::{AblatedComponent, Repair, Slots, repair};
pub use trace::trace;
