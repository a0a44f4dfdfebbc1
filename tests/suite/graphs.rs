//! The exported files are valid ONNX for other tools.

use std::path::Path;
use std::process::Command;

use crate::support::*;

/// One family of each kind: norms, biases, windows, parallel residual, norms of q and k, scaled embedding, mixtures of
/// experts, attention sinks; stored as float32, float16 (phi) and bfloat16 (the mixtures).
#[test]
fn onnx_checker_accepts_every_graph() {
    let dir = tempfile::tempdir().unwrap();
    let mut graphs = Vec::new();
    let families = ["gpt2", "gpt_neo", "phi", "qwen3", "gemma", "qwen2_moe", "gpt_oss"];
    for name in families.map(|name| format!("families/{name}")).into_iter().chain(["tiny-llama".into()]) {
        let model = dir.path().join(name.replace('/', "-"));
        std::fs::create_dir(&model).unwrap();
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(Path::new("tests/fixtures").join(&name).join(file), model.join(file)).unwrap();
        }
        std::fs::copy(Path::new(TINY).join("tokenizer.json"), model.join("tokenizer.json")).unwrap();
        let out = model.join("out");
        succeeded(run_tiny("export", &out, &[&format!("model.source={}", model.display())]));
        let exported = files(&out.join("model"));
        graphs.extend(exported.into_iter().filter(|p| p.extension().is_some_and(|e| e == "onnx")));
    }
    // Nine graphs a block and five around them, for eight models of three blocks; and three for each block that reads a
    // head first, where attention does so too (in phi, which has parallel blocks, all but the first) four. No mixture of
    // experts reads by differences.
    assert_eq!(graphs.len(), 8 * (3 * 9 + 5) + 5 * 3 * 3 + 2 * 4);
    let script = "import sys, onnx\n\
                  for path in sys.argv[1:]: onnx.checker.check_model(path, full_check=True)\n\
                  print(onnx.__version__, len(sys.argv) - 1)";
    let output = Command::new("python3")
        .env("PYTHONPATH", python_with("onnx-1.22", &["onnx>=1.19,<2"]))
        .args(["-c", script])
        .args(&graphs)
        .output()
        .unwrap();
    let printed = succeeded(output);
    assert!(printed.trim().ends_with(&graphs.len().to_string()), "{printed}");
}
