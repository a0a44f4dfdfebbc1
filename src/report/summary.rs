//! The summary of a run for the terminal, in about a dozen lines.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;

use super::Rows;
use super::query::ask;
use selfrepair_core::plain::shell_word;
use selfrepair_query::analyze::Tables;
use selfrepair_store::pieces;
use selfrepair_store::run_folder::warnings;

/// How much self-repair, in which layers, through what, and where everything lies.
pub fn summary(out: &Path) -> Result<String> {
    let tables = Tables::open(out)?;
    let (model, counts) = (Rows::ask(&tables, &ask!("model"))?, Rows::ask(&tables, &ask!("counts"))?);
    let mut text = String::new();
    writeln!(
        text,
        "\n{}: {} layers of {} heads; {} tokens of {} prompts measured\n",
        model.texts("name")?.concat(),
        model.number("layers")?,
        model.number("heads")?,
        counts.number("tokens")?,
        counts.number("prompts")?
    )?;
    // Tables without the records of a run say nothing of what was asked for.
    let covered = pieces::coverage(out)?.lines();
    for line in &covered {
        writeln!(text, "measured  {line}")?;
    }
    if !covered.is_empty() {
        writeln!(text)?;
    }
    for warning in warnings(out) {
        writeln!(text, "WARNING: {warning}\n")?;
    }
    let ablations = Rows::ask(&tables, &ask!("ablations"))?;
    for ablation in ablations.texts("ablation")? {
        write_ablation(&mut text, &tables, &ablation)?;
    }
    write_others(&mut text, &tables)?;
    let place = out.display();
    let argument = shell_word(&place.to_string());
    writeln!(text, "tables  {place}/tables    (pipeline sql --out {argument} \"select * from head_summary limit 5\")")?;
    write!(text, "report  {place}/report/index.html")?;
    Ok(text)
}

fn write_ablation(text: &mut String, tables: &Tables, ablation: &str) -> Result<()> {
    let all = Rows::ask(tables, &ask!("summary_heads", ablation = ablation))?;
    let value = |name: &str| all.number(name);
    writeln!(
        text,
        "{ablation} ablation, mean over {} heads, each on its top {} tokens by direct effect (of {:.0} prompts)",
        value("heads")?,
        value("tokens")?,
        value("prompts")?
    )?;
    writeln!(text, "  direct effect     {:+.3} logits", value("direct_effect")?)?;
    writeln!(text, "  its replacement's {:+.3}", value("ablated_direct_effect")?)?;
    let expected = value("ablated_direct_effect")? - value("direct_effect")?;
    writeln!(
        text,
        "  logit change      {:+.3}, where {expected:+.3} would be without self-repair",
        value("logit_change")?
    )?;
    write!(
        text,
        "  self-repair       {:+.3} = {:+.3} other heads {:+.3} MLPs {:+.3} final norm",
        value("self_repair")?,
        value("repair_attention")?,
        value("repair_mlp")?,
        value("repair_norm")?
    )?;
    match value("repair_write_norm")? {
        0.0 => writeln!(text)?,
        by_write_norms => writeln!(text, " {by_write_norms:+.3} norms of what parts write")?,
    }
    if tables.has("uncertainty")? {
        let interval = Rows::ask(tables, &ask!("summary_interval", ablation = ablation))?;
        let (low, high) = (interval.number("low")?, interval.number("high")?);
        writeln!(text, "  95 % interval     {low:+.3} to {high:+.3} (bootstrap over prompts)")?;
    }
    writeln!(
        text,
        "  heads repaired    {} of {} by more than two standard errors",
        value("surely_repaired")?,
        value("heads")?
    )?;
    let tokens = Rows::ask(tables, &ask!("compare_outcomes", ablation = ablation))?;
    let share = |name: &str| tokens.number(name);
    // A run whose heads hardly touch the logits has no such tokens.
    if share("not_repaired")?.is_finite() {
        writeln!(
            text,
            "  tokens            {:.0} % not repaired, {:.0} % partly, {:.0} % over-repaired (of those that lose > 0.05 logits)",
            share("not_repaired")?,
            share("partly_repaired")?,
            share("over_repaired")?
        )?;
    }
    let layers = Rows::ask(tables, &ask!("summary_layers", ablation = ablation))?;
    let strongest: Vec<String> = layers
        .numbers("layer")?
        .iter()
        .zip(layers.numbers("self_repair")?)
        .zip(layers.numbers("fraction_of_means")?)
        .map(|((layer, repair), fraction)| {
            format!("L{layer} {repair:+.3} ({:.0} % of its direct effect)", 100.0 * fraction)
        })
        .collect();
    writeln!(text, "  strongest layers  {}", strongest.join(", "))?;
    let heads = Rows::ask(tables, &ask!("summary_strongest_heads", ablation = ablation))?;
    let (layer, head) = (heads.numbers("layer")?, heads.numbers("head")?);
    let (repair, error) = (heads.numbers("self_repair")?, heads.numbers("self_repair_error")?);
    let strongest: Vec<String> =
        (0..layer.len()).map(|i| format!("L{}H{} {:+.2} ± {:.2}", layer[i], head[i], repair[i], error[i])).collect();
    writeln!(text, "  strongest heads   {}\n", strongest.join(", "))?;
    Ok(())
}

/// A line for each way of ablating that is not a head with nothing held.
fn write_others(text: &mut String, tables: &Tables) -> Result<()> {
    let rows = Rows::ask(tables, &ask!("summary_others"))?;
    let (ablation, hold, component) = (rows.texts("ablation")?, rows.texts("hold")?, rows.texts("component")?);
    let (count, de) = (rows.numbers("components")?, rows.numbers("direct_effect")?);
    let (change, repair) = (rows.numbers("logit_change")?, rows.numbers("self_repair")?);
    for i in 0..rows.len() {
        let held = if hold[i] == "none" { String::new() } else { format!(", {} held", hold[i]) };
        writeln!(
            text,
            "{} ablation of {} components ({}{held}), top tokens: direct effect {:+.3}, logit change {:+.3}, self-repair {:+.3}",
            ablation[i], count[i], component[i], de[i], change[i], repair[i]
        )?;
    }
    if !rows.is_empty() {
        writeln!(text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::test_run;
    use super::*;

    #[test]
    fn a_folder_is_a_word_of_the_command_that_the_summary_shows() {
        assert_eq!(
            ["out/160m", "my runs", "it's", "$(x)"].map(shell_word),
            ["out/160m", "'my runs'", "'it'\\''s'", "'$(x)'"]
        );
    }

    /// Means over the two heads: effects 1 and 0.5, repair 0.75 and −0.125.
    #[test]
    fn the_summary_tells_heads_apart_from_what_was_held() {
        let run = test_run("tiny", &["zero", "zero/erasers"]);
        let text = summary(run.path()).unwrap();
        for line in [
            "zero ablation, mean over 2 heads, each on its top 4 tokens by direct effect (of 2 prompts)",
            "  direct effect     +0.750 logits",
            "  self-repair       +0.312 = +0.000 other heads +0.312 MLPs +0.000 final norm",
            "  strongest heads   L0H0 +0.75 ± 0.25, L1H0 -0.12 ± 0.12",
            "zero ablation of 2 components (head, erasers held), top tokens: direct effect +0.750, logit change -0.438, \
             self-repair +0.312",
        ] {
            assert!(text.contains(line), "{line}\nis not in\n{text}");
        }
        assert_eq!(text.matches("zero ablation, mean over").count(), 1);
    }
}
