//! Ablates one head on one prompt, and prints self-repair token by token and what repairs it.
//!
//! `cargo run --release --example one_head -- [MODEL] [HEAD] [TEXT]`

use selfrepair::{Error, Kind, Model, Sweep};

fn main() -> Result<(), Error> {
    let mut args = std::env::args().skip(1);
    let mut next = |default: &str| args.next().unwrap_or_else(|| default.to_string());
    let (source, head) = (next("package:smollm2"), next("L26H2"));
    let text = next("When Mary and John went to the store, John gave a drink to Mary");

    let model = Model::open(&source)?;
    let prompt = model.tokenize(&text)?;
    let found = Sweep::new(&model).heads(&[&head])?.kind(Kind::Zero).run(&[prompt])?;

    println!("position  direct effect  logit change  self-repair");
    for token in found.tokens()? {
        let (position, direct, change, repair) =
            (token.position, token.direct_effect, token.logit_change, token.self_repair);
        println!("{position:>8}  {direct:>13.3}  {change:>12.3}  {repair:>11.3}");
    }
    let mut repairs = found.repairs()?;
    repairs.sort_by(|a, b| b.change.total_cmp(&a.change));
    println!("\nThe largest repairs, in logits:");
    for repair in repairs.iter().take(5) {
        println!("{:>8} at position {}: {:+.3}", repair.repairer, repair.position, repair.change);
    }
    Ok(())
}
