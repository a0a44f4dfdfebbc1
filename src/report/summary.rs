//! What was found, in a dozen lines for the terminal.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;

use super::Rows;
use super::figures::HEADS;
use selfrepair_query::analyze::Tables;
use selfrepair_store::run_folder::warnings;

/// How much self-repair, in which layers, through what, and where everything lies.
pub fn summary(out: &Path) -> Result<String> {
    let tables = Tables::open(out)?;
    let run = Rows::of(
        &tables,
        "select m.name, m.layers, m.heads, (select count(distinct prompt) from clean) as prompts,
            (select count(*) from clean) as tokens from model m",
    )?;
    let mut text = String::new();
    writeln!(
        text,
        "\n{}: {} layers of {} heads; {} tokens of {} prompts measured\n",
        run.texts("name")?.concat(),
        run.number("layers")?,
        run.number("heads")?,
        run.number("tokens")?,
        run.number("prompts")?
    )?;
    for warning in warnings(out) {
        writeln!(text, "WARNING: {warning}\n")?;
    }
    let ablations =
        Rows::of(&tables, &format!("select distinct ablation from head_summary where {HEADS} order by ablation"))?;
    for ablation in ablations.texts("ablation")? {
        write_ablation(&mut text, &tables, &ablation)?;
    }
    write_others(&mut text, &tables)?;
    let place = out.display();
    writeln!(text, "tables  {place}/tables    (pipeline sql --out {place} \"select * from head_summary limit 5\")")?;
    write!(text, "report  {place}/report/index.html")?;
    Ok(text)
}

fn write_ablation(text: &mut String, tables: &Tables, ablation: &str) -> Result<()> {
    let all = Rows::of(
        tables,
        &format!(
            "select count(*) as heads, avg(direct_effect) as de, avg(ablated_direct_effect) as left_over,
                avg(logit_change) as change, avg(tokens) as tokens, avg(prompts) as prompts,
                avg(self_repair) as repair, avg(repair_attention) as attention, avg(repair_mlp) as mlp,
                avg(repair_norm) as norm, sum(case when self_repair > 2 * self_repair_error then 1 else 0 end) as sure
             from head_summary where {HEADS} and ablation = '{ablation}' and subset = 'top'"
        ),
    )?;
    let value = |name: &str| all.number(name);
    writeln!(
        text,
        "{ablation} ablation, mean over {} heads, each on its top {} tokens by direct effect (of {:.0} prompts)",
        value("heads")?,
        value("tokens")?,
        value("prompts")?
    )?;
    writeln!(text, "  direct effect     {:+.3} logits", value("de")?)?;
    writeln!(text, "  its replacement's {:+.3}", value("left_over")?)?;
    let expected = value("left_over")? - value("de")?;
    writeln!(text, "  logit change      {:+.3}, where {expected:+.3} would be without self-repair", value("change")?)?;
    writeln!(
        text,
        "  self-repair       {:+.3} = {:+.3} other heads {:+.3} MLPs {:+.3} final norm",
        value("repair")?,
        value("attention")?,
        value("mlp")?,
        value("norm")?
    )?;
    if tables.has("uncertainty")? {
        let interval = Rows::of(
            tables,
            &format!(
                "select low, high from uncertainty where {HEADS} and ablation = '{ablation}' and layer is null
                 and subset = 'top' and measure = 'self_repair'"
            ),
        )?;
        let (low, high) = (interval.number("low")?, interval.number("high")?);
        writeln!(text, "  95 % interval     {low:+.3} to {high:+.3} (bootstrap over prompts)")?;
    }
    writeln!(text, "  heads repaired    {} of {} by more than two standard errors", value("sure")?, value("heads")?)?;
    let tokens = Rows::of(
        tables,
        &format!(
            "select sum(tokens * not_repaired) / sum(tokens) as no, sum(tokens * partly_repaired) / sum(tokens) as partly,
                sum(tokens * over_repaired) / sum(tokens) as over
             from repair_outcomes where {HEADS} and ablation = '{ablation}'"
        ),
    )?;
    let share = |name: &str| tokens.number(name).map(|share| 100.0 * share);
    // A run whose heads hardly touch the logits has no such tokens.
    if share("no")?.is_finite() {
        writeln!(
            text,
            "  tokens            {:.0} % not repaired, {:.0} % partly, {:.0} % over-repaired (of those that lose > 0.05 logits)",
            share("no")?,
            share("partly")?,
            share("over")?
        )?;
    }
    let layers = Rows::of(
        tables,
        &format!(
            "select layer, self_repair, fraction_of_means from layer_summary
             where {HEADS} and ablation = '{ablation}' and subset = 'top' order by self_repair desc limit 3"
        ),
    )?;
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
    let heads = Rows::of(
        tables,
        &format!(
            "select layer, head, self_repair, self_repair_error from head_summary
             where {HEADS} and ablation = '{ablation}' and subset = 'top' order by self_repair desc limit 3"
        ),
    )?;
    let (layer, head) = (heads.numbers("layer")?, heads.numbers("head")?);
    let (repair, error) = (heads.numbers("self_repair")?, heads.numbers("self_repair_error")?);
    let strongest: Vec<String> =
        (0..layer.len()).map(|i| format!("L{}H{} {:+.2} ± {:.2}", layer[i], head[i], repair[i], error[i])).collect();
    writeln!(text, "  strongest heads   {}\n", strongest.join(", "))?;
    Ok(())
}

/// A line for each way of ablating that is not a head with nothing held.
fn write_others(text: &mut String, tables: &Tables) -> Result<()> {
    let rows = Rows::of(
        tables,
        &format!(
            "select ablation, hold, component, count(*) as count, avg(direct_effect) as de, avg(logit_change) as change,
                avg(self_repair) as repair
             from head_summary where subset = 'top' and not ({HEADS})
             group by ablation, hold, component order by component, ablation, hold"
        ),
    )?;
    let (ablation, hold, component) = (rows.texts("ablation")?, rows.texts("hold")?, rows.texts("component")?);
    let (count, de) = (rows.numbers("count")?, rows.numbers("de")?);
    let (change, repair) = (rows.numbers("change")?, rows.numbers("repair")?);
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
    use super::super::handmade_run;
    use super::*;

    /// Means over the two heads: effects 1 and 0.5, repair 0.75 and −0.125.
    #[test]
    fn the_summary_tells_heads_apart_from_what_was_held() {
        let run = handmade_run("tiny", &["zero", "zero/erasers"]);
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
