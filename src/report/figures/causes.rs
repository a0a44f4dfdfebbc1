//! What repairs: other heads, MLPs, the final norm.

use anyhow::Result;

use super::{Figure, Study, ask};
use crate::chart::{Axis, BLUE, Cell, Chart, Colour, GREEN, Key, Mark, NamedPoint, ORANGE, PURPLE, Panel, with_zero};
use crate::rows::Rows;

const THEME: &str = "What repairs";

/// Column, name, colour.
pub type Cause = (&'static str, &'static str, Colour);

const CAUSES: [Cause; 3] =
    [("repair_attention", "other heads", BLUE), ("repair_mlp", "MLPs", ORANGE), ("repair_norm", "final norm", GREEN)];

/// Only of models with such norms.
const WRITE_NORM: Cause = ("repair_write_norm", "norms of what parts write", PURPLE);

/// The causes in the order in which bars are stacked: all that any of the rows have.
pub fn causes_of<'a>(rows: impl IntoIterator<Item = &'a Rows>) -> Result<Vec<Cause>> {
    let mut causes = CAUSES.to_vec();
    for rows in rows {
        if !causes.contains(&WRITE_NORM) && rows.numbers(WRITE_NORM.0)?.iter().any(|v| v.abs() > 0.0) {
            causes.push(WRITE_NORM);
        }
    }
    Ok(causes)
}

pub fn figures(study: &Study) -> Result<Vec<Figure>> {
    let mut out = Vec::new();
    for ablation in &study.ablations {
        out.push(causes_by_layer(study, ablation)?);
        out.push(shares_by_layer(study, ablation)?);
    }
    Ok(out)
}

/// Stacks values from 0, positive ones upwards and negative ones downwards; (from, to) of each.
pub fn stacked(values: &[f64]) -> Vec<(f64, f64)> {
    let (mut up, mut down) = (0.0, 0.0);
    let stack = |&value: &f64| {
        let end = if value >= 0.0 { &mut up } else { &mut down };
        let from = *end;
        *end += value;
        (from, *end)
    };
    values.iter().map(stack).collect()
}

fn causes_by_layer(study: &Study, ablation: &str) -> Result<Figure> {
    let sql = ask!("causes_by_layer", ablation = ablation);
    let rows = study.rows(&sql)?;
    let (layer, total) = (rows.numbers("layer")?, rows.numbers("self_repair")?);
    let causes = causes_of([&rows])?;
    let values: Vec<Vec<f64>> = causes.iter().map(|(column, ..)| rows.numbers(column)).collect::<Result<_>>()?;
    let mut boxes = Vec::new();
    for (i, &layer) in layer.iter().enumerate() {
        let parts: Vec<f64> = values.iter().map(|of_cause| of_cause[i]).collect();
        for ((from, to), &(_, name, colour)) in stacked(&parts).into_iter().zip(&causes) {
            let corners = ((layer - 0.36, from), (layer + 0.36, to));
            boxes.push(Cell { corners, colour, name: format!("layer {layer}, {name}: {:.3} logits", to - from) });
        }
    }
    let ends: Vec<f64> = boxes.iter().flat_map(|b| [b.corners.0.1, b.corners.1.1]).collect();
    let sums = layer.iter().zip(&total).map(|(&x, &y)| NamedPoint {
        at: (x, y),
        colour: Colour::Ink,
        name: format!("layer {x}: {y:.3} logits"),
    });
    let panel = Panel::new(
        "",
        Axis::whole("layer of the ablated head", &layer),
        Axis::numbers("mean self-repair of top tokens [logits]", with_zero(ends)),
    )
    .with(Mark::Boxes { boxes, opacity: 1.0 })
    .zero()
    .with(Mark::Points { points: sums.collect(), radius: 4.0 });
    let legend = causes.iter().map(|(_, label, colour)| Key::Box(*colour, 1.0, (*label).into()));
    Ok(Figure {
        name: format!("causes_by_layer_{ablation}"),
        theme: THEME,
        caption: "Self-repair split into its causes: later heads, MLPs (from the ablated head's own layer on), the \
                  final norm, whose scale changes when the stream does, and, in models that have them, norms of what \
                  attention and MLPs write. Negative bars made the loss larger."
            .into(),
        sql: vec![sql],
        chart: Chart {
            title: "What repairs, by layer of the ablated head".into(),
            settings: study.settings.line(&format!("{ablation} ablation, top tokens")),
            legend: legend.chain([Key::Dot(Colour::Ink, "self-repair, their sum".into())]).collect(),
            panels: vec![panel],
            columns: 1,
            height: 330.0,
        },
    })
}

/// How much of the direct effect each cause makes up for, as the paper counts it.
fn shares_by_layer(study: &Study, ablation: &str) -> Result<Figure> {
    let sql = ask!("shares_by_layer", ablation = ablation);
    let rows = study.rows(&sql)?;
    let causes = causes_of([&rows])?;
    let mut panels = Vec::new();
    for (subset, title) in [("top", "top tokens of each head"), ("all", "all tokens")] {
        let rows = rows.filtered("subset", subset)?;
        let mut ends = Vec::new();
        for (column, ..) in &causes {
            ends.extend(rows.numbers(column)?.into_iter().map(|v| 100.0 * v));
        }
        let x = Axis::whole("layer of the ablated head", &rows.numbers("layer")?);
        let mut panel = Panel::new(title, x, Axis::numbers("share of the direct effect [%]", with_zero(ends)));
        for &(column, _, colour) in &causes {
            let line = rows.points("layer", column)?.into_iter().map(|(x, y)| (x, 100.0 * y)).collect();
            panel.marks.push(Mark::line(line, colour));
        }
        panels.push(panel);
    }
    Ok(Figure {
        name: format!("shares_by_layer_{ablation}"),
        theme: THEME,
        caption: "How much of a head's direct effect each cause repairs: mean over tokens of cause / direct \
                  effect, clipped to [0, 1] token by token, then over the heads of a layer."
            .into(),
        sql: vec![sql],
        chart: Chart {
            title: "Share of the direct effect that each cause repairs".into(),
            settings: study.settings.line(&format!("{ablation} ablation")),
            legend: causes.iter().map(|(_, label, colour)| Key::Line(*colour, (*label).into())).collect(),
            panels,
            columns: 2,
            height: 260.0,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::stacked;

    #[test]
    fn positive_and_negative_parts_are_stacked_apart() {
        assert_eq!(stacked(&[1.0, -0.5, 2.0, -1.0]), [(0.0, 1.0), (0.0, -0.5), (1.0, 3.0), (-0.5, -1.5)]);
    }
}
