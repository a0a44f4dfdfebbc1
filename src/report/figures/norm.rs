//! The final norm's scale and the stream's norm, ablated over clean.

use anyhow::Result;

use super::{Asked, Figure, Study, ask};
use crate::chart::{Axis, BLUE, Chart, Colour, Key, Mark, ORANGE, Panel};
use crate::histogram::Histogram;

const THEME: &str = "The final norm";

const BINS: usize = 80;

/// What is compared: a figure's name, a title, an axis, the query for the ends of the drawn range and the one that counts.
struct Ratio {
    name: &'static str,
    title: &'static str,
    axis: &'static str,
    caption: &'static str,
    range: fn(&str) -> Asked,
    counts: fn(&str) -> Asked,
}

const RATIOS: [Ratio; 2] = [
    Ratio {
        name: "norm_scale",
        title: "Scale of the final norm, ablated / clean",
        axis: "ablated / clean scale of the final norm",
        caption: "A ratio below 1 makes every direct effect larger than it was in the clean run, and so repairs a \
                  positive logit. What lies outside the middle 99.8 % is not drawn.",
        range: |ablation| ask!("norm_scale_range", ablation = ablation),
        counts: |ablation| ask!("norm_scale", ablation = ablation),
    },
    Ratio {
        name: "residual_norm",
        title: "Length of the final residual stream, ablated / clean",
        axis: "ablated / clean norm of the final stream",
        caption: "Whether ablating a head makes the final stream shorter or longer. What lies outside the middle 99.8 % is \
                  not drawn.",
        range: |ablation| ask!("residual_norm_range", ablation = ablation),
        counts: |ablation| ask!("residual_norm", ablation = ablation),
    },
];

pub fn figures(study: &Study) -> Result<Vec<Figure>> {
    if study.ablations.is_empty() || !study.has(&["top_tokens"])? {
        return Ok(Vec::new());
    }
    RATIOS.iter().map(|ratio| histograms(study, ratio)).collect()
}

/// A panel an ablation, all with the same bins, all tokens and top tokens overlaid.
fn histograms(study: &Study, ratio: &Ratio) -> Result<Figure> {
    let mut queries = Vec::new();
    let mut low = f64::INFINITY;
    let mut high = f64::NEG_INFINITY;
    for ablation in &study.ablations {
        let rows = study.rows(&(ratio.range)(ablation))?;
        low = low.min(rows.number("low")?);
        high = high.max(rows.number("high")?);
    }
    // Quantiles of many millions are approximate: whole thousandths keep the figure the same from run to run.
    let (low, high) = ((low * 1000.0).floor() / 1000.0, (high * 1000.0).ceil() / 1000.0);
    // Runs whose heads do nothing have one ratio, 1.
    let (low, high) = if high > low { (low, high) } else { (low - 0.01, low + 0.01) };
    let width = (high - low) / BINS as f64;
    let mut drawn = Vec::new();
    for ablation in &study.ablations {
        let sql = (ratio.counts)(ablation).with("low", low).with("width", width);
        let rows = study.rows(&sql)?;
        let top = rows.filtered("subset", "top")?;
        let count = |rows: &crate::Rows| -> Result<Histogram> {
            Ok(Histogram::counted(low, width, BINS, &rows.numbers("bin")?, &rows.numbers("rows")?))
        };
        drawn.push((ablation, count(&rows)?, count(&top)?));
        queries.push(sql);
    }
    let highest =
        drawn.iter().flat_map(|(_, all, top)| all.shares.iter().chain(&top.shares)).fold(0.0, |m: f64, v| m.max(*v));
    let panels = drawn.into_iter().map(|(ablation, all, top)| {
        let x = Axis::numbers(ratio.axis, (low, high));
        Panel::new(format!("{ablation} ablation"), x, Axis::numbers("tokens × heads [%]", (0.0, 1.08 * highest)))
            .with(Mark::thin((1.0, 0.0), (1.0, 2.0 * highest), Colour::Soft))
            .with(all.mark(BLUE, 0.45))
            .with(top.outline(ORANGE))
    });
    Ok(Figure {
        name: ratio.name.into(),
        theme: THEME,
        caption: ratio.caption.into(),
        sql: queries,
        chart: Chart {
            title: ratio.title.into(),
            settings: study.settings.line("all ablated heads"),
            legend: vec![
                Key::Box(BLUE, 0.45, "all tokens".into()),
                Key::Line(ORANGE, "top tokens of each head".into()),
            ],
            panels: panels.collect(),
            columns: study.ablations.len().min(2),
            height: 230.0,
        },
    })
}
