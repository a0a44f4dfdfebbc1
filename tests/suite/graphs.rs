//! The exported files are ONNX that other tools open.

use std::path::PathBuf;
use std::process::Command;

use crate::support::*;

/// A folder with Python's `onnx` package, installed once through pip below the build folder.
fn python_with_onnx() -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("python-onnx-1.22");
    if !folder.join("onnx").is_dir() {
        let fresh = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let status = Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "onnx>=1.19,<2", "--target"])
            .arg(fresh.path())
            .status()
            .unwrap();
        assert!(status.success(), "pip install onnx failed");
        std::fs::rename(fresh.keep(), &folder).unwrap();
    }
    folder
}

#[test]
fn onnx_checker_accepts_every_graph() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("export", dir.path(), &[]));
    let graphs: Vec<_> =
        files(&dir.path().join("model")).into_iter().filter(|p| p.extension().is_some_and(|e| e == "onnx")).collect();
    assert_eq!(graphs.len(), 2 * 3 + 5);
    let script = "import sys, onnx\n\
                  for path in sys.argv[1:]: onnx.checker.check_model(path, full_check=True)\n\
                  print(onnx.__version__, len(sys.argv) - 1)";
    let output = Command::new("python3")
        .env("PYTHONPATH", python_with_onnx())
        .args(["-c", script])
        .args(&graphs)
        .output()
        .unwrap();
    let printed = succeeded(output);
    assert!(printed.trim().ends_with("11"), "{printed}");
}
