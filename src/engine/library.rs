//! What is known of ONNX Runtime's library, and of the processor it runs on.

use std::ffi::CStr;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use ort::ep::{self, ExecutionProvider};
use selfrepair_model::provision;

/// What can change the rounding besides the device: the version of ONNX Runtime's library, and the widest vector
/// instructions of the processor.
///
/// # Errors
/// If the library is not there.
pub fn rounding_of() -> Result<(String, String)> {
    Ok((version_of(&provision::locate_library()?.path)?, vector_instructions().to_string()))
}

#[cfg(target_arch = "x86_64")]
fn vector_instructions() -> &'static str {
    let has_avx512 = std::arch::is_x86_feature_detected!("avx512f");
    let has_avx2 = std::arch::is_x86_feature_detected!("avx2");
    match (has_avx512, has_avx2) {
        (true, _) => "avx512",
        (_, true) => "avx2",
        _ => "sse",
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn vector_instructions() -> &'static str {
    std::env::consts::ARCH
}

/// Version and execution providers of a library, for `doctor`.
pub fn describe(path: &Path) -> Result<(String, Vec<&'static str>)> {
    let version = version_of(path)?;
    let builder = ort::init_from(path).map_err(|e| anyhow!("{e}"))?;
    let _environment = builder.with_telemetry(false).build()?;
    let mut providers = vec!["CPU"];
    if ep::CUDA::is_available()? {
        providers.push("CUDA");
    }
    Ok((version, providers))
}

/// What the library says its version is: `ort` reads the same string but keeps it to itself.
fn version_of(path: &Path) -> Result<String> {
    #[allow(unsafe_code)]
    // SAFETY: loading runs the library's initialisers, as `ort` does when it loads the same file; `OrtGetApiBase` and
    // the two fields of what it returns are the part of ONNX Runtime's C interface that never changes.
    unsafe {
        let library = libloading::Library::new(path)?;
        let get: libloading::Symbol<unsafe extern "C" fn() -> *const ort::sys::OrtApiBase> =
            library.get(b"OrtGetApiBase").context("it is not ONNX Runtime")?;
        Ok(CStr::from_ptr(((*get()).GetVersionString)()).to_string_lossy().into_owned())
    }
}
