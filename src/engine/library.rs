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

/// ONNX Runtime's packages send usage data unless this variable is set before the library is loaded: creating its
/// environment without telemetry comes too late.
const NO_USAGE_DATA: (&str, &str) = ("ORT_DISABLE_TELEMETRY", "1");

/// Says to ONNX Runtime that it is to send no usage data. Must be called before the library is loaded, and does nothing
/// where another thread runs: a program with several threads has to set `ORT_DISABLE_TELEMETRY=1` itself.
pub fn send_no_usage_data() {
    let (name, value) = NO_USAGE_DATA;
    if std::env::var_os(name).is_some_and(|set| set == value) || !is_only_thread() {
        return;
    }
    #[allow(unsafe_code)]
    // SAFETY: no other thread runs that could read the environment.
    unsafe {
        std::env::set_var(name, value);
    }
}

#[cfg(target_os = "linux")]
fn is_only_thread() -> bool {
    std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1)
}

#[cfg(not(target_os = "linux"))]
fn is_only_thread() -> bool {
    false
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
    send_no_usage_data();
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
