//! The measurement of self-repair (Rushing & Nanda, arXiv 2402.15390): a clean pass over all prompts, then every selected
//! component ablated and only what follows it run again.
//!
//! [`trace`] and [`ablate`] take a [`MeasureContext`], which is all that they need, and give the rows of their tables to
//! its [`RowSink`](selfrepair_core::sink::RowSink). They know nothing of folders, Parquet or SQL. `docs/definitions.md`
//! has the definitions; [`Repair`] cites them.

pub mod ablate;
mod activations;
mod context;
mod cost;
pub mod iterate;
mod repair;
mod trace;

pub use context::{MeasureContext, RowsPerCall};
pub use cost::{ablate_flops, trace_flops};
pub use repair::{AblatedComponent, Repair, Slots, repair};
pub use trace::trace;
