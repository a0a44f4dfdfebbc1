//! The final norm's scale and the stream's length, ablated relative to clean.

use anyhow::Result;

use super::{Figure, HEADS, Study, quoted};
use crate::chart::{Axis, BLUE, Chart, Colour, Key, Mark, ORANGE, Panel};
use crate::histogram::Histogram;

const THEME: &str = "The final norm";

const BINS: usize = 80;

/// What is compared: a file's name, a title, an axis, and the ratio in SQL over `a` (ablations) and `c` (clean).
struct Ratio {
    name: &'static str,
    title: &'static str,
    axis: &'static str,
    caption: &'static str,
    sql: &'static str,
}

const RATIOS: [Ratio; 2] = [
    Ratio {
        name: "norm_scale",
        title: "Scale of the final norm, ablated / clean",
        axis: "ablated / clean scale of the final norm",
        caption: "A ratio below 1 makes every direct effect larger than it was in the clean run, and so repairs a \
                  positive logit. What lies outside the middle 99.8 % is not drawn.",
        sql: "cast(a.ablated_norm_scale as double) / a.norm_scale",
    },
    Ratio {
        name: "residual_norm",
        title: "Length of the final residual stream, ablated / clean",
        axis: "ablated / clean norm of the final stream",
        caption: "Whether ablating a head makes the final stream shorter or longer. What lies outside the middle 99.8 % is \
                  not drawn.",
        sql: "cast(a.ablated_residual_norm as double) / c.residual_norm",
    },
];

pub fn figures(study: &Study) -> Result<Vec<Figure>> {
    if study.ablations.is_empty() {
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
        let source = source(ratio, ablation);
        let sql = format!(
            "select approx_percentile_cont(0.001) within group (order by ratio) as low, \
             approx_percentile_cont(0.999) within group (order by ratio) as high from ({source})"
        );
        let rows = study.rows(&sql)?;
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
        let sql = format!(
            "select case when t.prompt is null then 'other' else 'top' end as subset, \
             floor((r.ratio - {low}) / {width}) as bin, count(*) as rows from ({}) r left join ({}) t \
             on t.component = 'head' and r.layer = t.layer and r.head = t.head and r.prompt = t.prompt \
             and r.position = t.position group by 1, 2",
            source(ratio, ablation),
            study.tops(ablation)?
        );
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

fn source(ratio: &Ratio, ablation: &str) -> String {
    // The clean stream's length is in another table; the norm's scale needs no join.
    let join =
        if ratio.sql.contains("c.") { "join clean c on a.prompt = c.prompt and a.position = c.position" } else { "" };
    format!(
        "select a.layer, a.head, a.prompt, a.position, {} as ratio from ablations a {join} \
         where a.{} and a.ablation = {}",
        ratio.sql,
        HEADS.replace("hold", "a.hold"),
        quoted(ablation)
    )
}
