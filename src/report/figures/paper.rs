//! The run compared with the numbers that the paper's authors published.

use anyhow::Result;

use super::{Figure, LayerColours, Study, ask};
use crate::chart::{Axis, Chart, Colour, Key, Mark, ORANGE, Panel, common};

const THEME: &str = "Beside the authors' numbers";

/// The authors' metrics and what they are.
const METRICS: [(&str, &str); 9] = [
    ("direct_effects", "direct effect [logits]"),
    ("ablated_direct_effects", "ablated direct effect [logits]"),
    ("logit_diff", "change of the logit [logits]"),
    ("self_repair_from_heads", "repair by heads [logits]"),
    ("self_repair_from_layers", "repair by MLPs [logits]"),
    ("self_repair_from_LN", "repair by the norm [logits]"),
    ("percent_heads_of_DE", "share of DE, heads"),
    ("percent_layers_of_DE", "share of DE, MLPs"),
    ("percent_LN_of_DE", "share of DE, norm"),
];

pub fn figures(study: &Study) -> Result<Vec<Figure>> {
    if !study.has(&["paper_comparison", "paper_agreement"])? {
        return Ok(Vec::new());
    }
    let mut out = Vec::new();
    // The authors resampled: other ablations have nothing to be compared with as long as there is that one.
    if let Some(ablation) = study.main_ablation() {
        for (subset, what) in [("top", "top 2 % of tokens"), ("all", "all tokens")] {
            out.extend(scatter(study, ablation, subset, what)?);
        }
    }
    Ok(out)
}

fn scatter(study: &Study, ablation: &str, subset: &str, what: &str) -> Result<Option<Figure>> {
    let sql = ask!("authors", ablation = ablation, subset = subset);
    let agreement = ask!("authors_agreement", ablation = ablation, subset = subset);
    let (rows, agreement_rows) = (study.rows(&sql)?, study.rows(&agreement)?);
    if rows.is_empty() {
        return Ok(None);
    }
    let colours = LayerColours::of(&rows.numbers("layer")?);
    let mut panels = Vec::new();
    for (metric, label) in METRICS {
        let rows = rows.filtered("metric", metric)?;
        if rows.is_empty() {
            continue;
        }
        let (x, y) = (rows.numbers("paper")?, rows.numbers("ours")?);
        let agreement = agreement_rows.filtered("metric", metric)?;
        let title = format!(
            "{label} ρ {:.2} Δ {:.0} %",
            agreement.number("rank_correlation")?,
            100.0 * agreement.number("median_relative_difference")?
        )
        .replace('-', "−");
        let range = common(&x, &y);
        panels.push(
            Panel::new(title, Axis::numbers("authors", range), Axis::numbers("this run", range))
                .with(Mark::thin((range.0, 0.0), (range.1, 0.0), Colour::Soft))
                .through_origin(1.0, ORANGE)
                .with(colours.points(&rows.numbers("layer")?, &rows.numbers("head")?, &x, &y)),
        );
    }
    Ok(Some(Figure {
        name: format!("authors_{subset}_{ablation}"),
        theme: THEME,
        caption:
            "Each point is a head: the value that the paper's authors published for this model, against the value of \
            this run; ρ is the rank correlation over the heads, Δ the median relative difference. Numbers of tokens \
            and \
                  pairs of prompts differ."
                .into(),
        sql: vec![sql, agreement],
        chart: Chart {
            title: format!("The authors' numbers and this run's, {what}"),
            settings: study.settings.line(&format!("{ablation} ablation")),
            legend: vec![Key::Dashed(ORANGE, "y = x".into()), colours.key()],
            panels,
            columns: 3,
            height: 190.0,
        },
    }))
}
