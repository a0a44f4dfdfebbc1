//! Measures self-repair in language models: when an attention head is ablated, later parts of the model compensate.
//! Definitions are those of Rushing & Nanda, *Explorations of Self-Repair in Language Models* (arXiv 2402.15390).
//!
//! # Quick start
//!
//! Ablate two heads on one prompt, and print the components that repair them:
//!
//! ```
//! use selfrepair::{Kind, Model, Sweep};
//!
//! # fn main() -> Result<(), selfrepair::Error> {
//! let model = Model::open("tests/fixtures/tiny-llama")?;
//! let prompt = model.tokenize("The doctor said that the nurse was late")?;
//! let found = Sweep::new(&model).heads(&["L0H1", "L1H2"])?.kind(Kind::Zero).run(&[prompt])?;
//! for repair in found.repairs()? {
//!     println!("{} repairs {}: {:+.4} logits", repair.repairer, repair.ablated, repair.change);
//! }
//! # assert!(found.repairs()?.iter().any(|r| r.ablated == "L0H1" && r.repairer == "MLP0"));
//! # Ok(())
//! # }
//! ```
//!
//! The directory has `config.json`, the weights (safetensors or PyTorch's `.bin`) and `tokenizer.json`; a `.gguf` file,
//! `package:smollm2` and `hf:owner/name` work too. `pipeline doctor` shows which ONNX Runtime library is used. More
//! programs are in `examples/`.
//!
//! ONNX Runtime's packages send usage data unless the environment variable `ORT_DISABLE_TELEMETRY` is `1` before they
//! are loaded. [`Model::open`] sets it on Linux where no other thread runs. A program that has several threads by then
//! has to set it itself.
//!
//! # Layers
//!
//! | module | crate | what it has |
//! | --- | --- | --- |
//! | [`core`] | `selfrepair-core` | names of components, configuration, prompts, table schemas, errors |
//! | [`model`] | `selfrepair-model` | checkpoints of many families as one architecture and its weights |
//! | [`engine`] | `selfrepair-engine` | ONNX graphs, written and run |
//! | [`measure`] | `selfrepair-measure` | the clean pass, ablations, and the causes of self-repair |
//! | [`store`] | `selfrepair-store` | run folders of Parquet tables |
//!
//! With the feature `program` (the default) there are also `query` (SQL with DataFusion) and `report` (figures), and the
//! program `pipeline`. Without it, neither DataFusion nor polars is compiled.

mod error;
mod sweep;

pub use selfrepair_core as core;
pub use selfrepair_engine as engine;
pub use selfrepair_measure as measure;
pub use selfrepair_model as model;
#[cfg(feature = "program")]
pub use selfrepair_query as query;
#[cfg(feature = "program")]
pub use selfrepair_report as report;
pub use selfrepair_store as store;

pub use error::Error;
pub use selfrepair_core::config::Kind;
pub use selfrepair_core::prompts::Prompts;
pub use sweep::{Found, Model, RepairOf, Sweep, TokenRepair};
