//! What was found, in a dozen lines for the terminal.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;

use super::Rows;
use super::figures::HEADS;
use crate::analyze::Tables;

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
    let ablations =
        Rows::of(&tables, &format!("select distinct ablation from head_summary where {HEADS} order by ablation"))?;
    for ablation in ablations.texts("ablation")? {
        write_ablation(&mut text, &tables, &ablation)?;
    }
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
