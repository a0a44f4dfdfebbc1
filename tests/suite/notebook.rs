//! `docs/notebook.ipynb`: its cells run on a tiny run, and it is committed with its outputs.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::support::*;

fn cells() -> Vec<Value> {
    let notebook: Value = serde_json::from_str(&fs::read_to_string("docs/notebook.ipynb").unwrap()).unwrap();
    notebook["cells"].as_array().unwrap().clone()
}

fn source(cell: &Value) -> String {
    let lines = cell["source"].as_array().unwrap().iter();
    lines.map(|line| line.as_str().unwrap()).collect()
}

#[test]
fn every_cell_runs_on_a_tiny_run() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    succeeded(run_tiny("analyze", &out, &[]));
    // The cells one after another as a notebook runs them; a picture is a file, and its axes have something on them.
    let mut script = String::from(
        "import matplotlib; matplotlib.use('agg')\n\
         import matplotlib.pyplot as plt\n\
         pictures = []\n\
         def show():\n    \
             axes = plt.gcf().get_axes()\n    \
             assert axes and all(a.collections or a.lines for a in axes), 'an empty picture'\n    \
             pictures.append(len(axes))\n    \
             plt.close('all')\n\
         plt.show = show\n",
    );
    let code: Vec<String> = cells().iter().filter(|c| c["cell_type"] == "code").map(source).collect();
    code.iter().for_each(|cell| script.push_str(&format!("{cell}\n\n")));
    script.push_str("print('pictures', len(pictures))\nassert len(ablations) == 6480, len(ablations)\n");
    let file = dir.path().join("notebook.py");
    fs::write(&file, script).unwrap();
    let mut python = Command::new("python3");
    python.arg(&file).current_dir(dir.path()).env("PYTHONPATH", python_for_notebooks()).env("PIPELINE_RUN", &out);
    // Where `datasets` and matplotlib keep what they made.
    python.env("HF_HOME", dir.path()).env("MPLCONFIGDIR", dir.path());
    let printed = succeeded(python.output().unwrap());
    assert!(printed.contains("pictures 3"), "{printed}");
}

#[test]
fn it_is_committed_as_it_was_executed_and_small() {
    let mut pictures = 0;
    for cell in cells().iter().filter(|c| c["cell_type"] == "code") {
        assert!(cell["execution_count"].is_u64(), "not executed: {}", source(cell));
        for output in cell["outputs"].as_array().unwrap() {
            assert_ne!(output["output_type"], "error", "{}", source(cell));
            pictures += usize::from(output["data"]["image/png"].is_string());
        }
    }
    assert_eq!(pictures, 3);
    let text = fs::read_to_string("docs/notebook.ipynb").unwrap();
    assert!(text.len() < 150_000, "{} bytes", text.len());
    for folder in ["/tmp/", "/home/", "/root/"] {
        assert!(!text.contains(folder), "a path of the machine it was executed on: {folder}");
    }
}
