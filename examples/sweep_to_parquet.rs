//! Ablates the heads of some layers on a few prompts and writes the tables as Parquet.
//!
//! `cargo run --release --example sweep_to_parquet -- [OUT] [MODEL] [HEADS]`

use std::path::Path;

use selfrepair::store::StageFiles;
use selfrepair::store::run_folder::{RunFolder, Stage};
use selfrepair::{Error, Kind, Model, Prompts, Sweep};

const TEXTS: [&str; 2] = [
    "The doctor said that the nurse was late because her train had stopped near the old bridge in the rain",
    "My brother told me that the car was broken since he drove it into a lake on his way to the office",
];

fn main() -> Result<(), Error> {
    let mut args = std::env::args().skip(1);
    let mut next = |default: &str| args.next().unwrap_or_else(|| default.to_string());
    let (out, source, heads) = (next("out/example"), next("package:smollm2"), next("L26-29"));

    let model = Model::open(&source)?;
    let mut prompts = TEXTS.map(|text| model.tokenize(text)).into_iter().collect::<Result<Vec<_>, _>>()?;
    // Resample ablation pairs prompts of equal length.
    let length = prompts.iter().map(Vec::len).min().unwrap_or_default();
    prompts.iter_mut().for_each(|prompt| prompt.truncate(length));

    let folder = RunFolder::open(Path::new(&out), "example".into(), &[], None)?;
    let files = StageFiles::new(&folder, Stage::Ablate, "example");
    let sweep = Sweep::new(&model).heads(&[&heads])?.kind(Kind::Resample);
    sweep.run_into(&Prompts::packed(length, prompts.concat()), &files)?;
    println!("wrote {out}/tables; next: cargo run --release --example query_a_run -- {out}");
    Ok(())
}
