//! Figures as SVG. Colours are Okabe and Ito's, which colour-blind readers tell apart.

use anyhow::{Result, anyhow};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::Rows;
use crate::analyze::Tables;

const BLUE: RGBColor = RGBColor(0, 114, 178);
const ORANGE: RGBColor = RGBColor(230, 159, 0);
const GREEN: RGBColor = RGBColor(0, 158, 115);
const GREY: RGBColor = RGBColor(110, 110, 110);

/// Causes in the order in which bars are stacked.
const CAUSES: [(&str, &str, RGBColor); 3] =
    [("repair_attention", "other heads", BLUE), ("repair_mlp", "MLPs", ORANGE), ("repair_norm", "final norm", GREEN)];

const SIZE: (u32, u32) = (860, 460);

/// A figure and where its numbers come from.
pub struct Figure {
    pub name: String,
    pub caption: String,
    pub sql: String,
    pub svg: String,
}

/// Every figure of a run, for each of its ablations.
pub fn all(tables: &Tables) -> Result<Vec<Figure>> {
    let ablations = Rows::of(tables, "select distinct ablation from head_summary order by ablation")?;
    let mut out = Vec::new();
    for ablation in ablations.texts("ablation")? {
        out.push(repair_by_layer(tables, &ablation)?);
        out.push(causes_by_layer(tables, &ablation)?);
        out.push(effect_against_change(tables, &ablation)?);
        out.push(quantiles_by_layer(tables, &ablation)?);
    }
    Ok(out)
}

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// What every figure has: a title, a legend above the plot, axes with units, a light mesh.
struct Frame<'a> {
    title: &'a str,
    x: &'a str,
    y: &'a str,
    x_range: (f64, f64),
    y_range: (f64, f64),
    /// Ticks at whole numbers only.
    whole_x: bool,
    legend: Vec<(Mark, String, RGBAColor)>,
}

/// How a series looks in the legend.
enum Mark {
    Dot,
    Line,
    Box,
}

fn draw(frame: &Frame, content: impl FnOnce(&mut Chart) -> Result<()>) -> Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let below = root.titled(frame.title, ("sans-serif", 20)).map_err(failed)?;
        let (legend, plot) = below.split_vertically(26);
        draw_legend(&legend, &frame.legend)?;
        let mut chart = ChartBuilder::on(&plot)
            .margin(14)
            .margin_top(4)
            .x_label_area_size(46)
            .y_label_area_size(64)
            .build_cartesian_2d(frame.x_range.0..frame.x_range.1, frame.y_range.0..frame.y_range.1)
            .map_err(failed)?;
        // Adding zero turns −0 into 0.
        let rounded = |v: f64, digits: usize| {
            let scale = 10f64.powi(digits as i32);
            format!("{:.digits$}", (v * scale).round() / scale + 0.0)
        };
        let digits = if frame.whole_x { 0 } else { 2 };
        chart
            .configure_mesh()
            .x_desc(frame.x)
            .y_desc(frame.y)
            .axis_desc_style(("sans-serif", 15))
            .label_style(("sans-serif", 13))
            .light_line_style(WHITE)
            .bold_line_style(RGBColor(232, 232, 232))
            .x_labels(12)
            // Layers are whole: a tick between two of them gets no label.
            .x_label_formatter(&|&x| match frame.whole_x && (x - x.round()).abs() > 1e-6 {
                true => String::new(),
                false => rounded(x, digits),
            })
            .y_label_formatter(&|&y| rounded(y, 2))
            .draw()
            .map_err(failed)?;
        content(&mut chart)?;
        root.present().map_err(failed)?;
    }
    Ok(svg)
}

/// One row of marks and labels: nothing in the plot is covered by it.
fn draw_legend(
    area: &DrawingArea<SVGBackend, plotters::coord::Shift>,
    entries: &[(Mark, String, RGBAColor)],
) -> Result<()> {
    // A sans-serif letter of 13 px is about 6.3 px wide.
    let width = |label: &str| 26 + (label.chars().count() as f64 * 6.3) as i32 + 18;
    let total: i32 = entries.iter().map(|e| width(&e.1)).sum();
    let mut x = (SIZE.0 as i32 - total) / 2;
    for (mark, label, color) in entries {
        let (middle, style) = (13, color.filled());
        match mark {
            Mark::Dot => area.draw(&Circle::new((x + 12, middle), 4, style)),
            Mark::Line => area.draw(&PathElement::new(vec![(x, middle), (x + 20, middle)], color.stroke_width(3))),
            Mark::Box => area.draw(&Rectangle::new([(x + 6, middle - 6), (x + 18, middle + 6)], style)),
        }
        .map_err(failed)?;
        area.draw(&Text::new(label.clone(), (x + 26, middle - 7), ("sans-serif", 13))).map_err(failed)?;
        x += width(label);
    }
    Ok(())
}

fn failed(e: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw the figure: {e}")
}

/// The range of some numbers and zero, with a little room.
fn range<'a>(values: impl IntoIterator<Item = &'a f64>) -> (f64, f64) {
    let (low, high) =
        values.into_iter().filter(|v| v.is_finite()).fold((0f64, 0f64), |(low, high), &v| (low.min(v), high.max(v)));
    let room = 0.06 * (high - low).max(1e-3);
    (low - room, high + room)
}

/// Half a layer of room on both sides.
fn layer_range(layers: &[f64]) -> (f64, f64) {
    let low = layers.iter().copied().fold(f64::INFINITY, f64::min);
    let high = layers.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (low - 0.6, high + 0.6)
}

fn line(from: (f64, f64), to: (f64, f64), color: RGBColor) -> PathElement<(f64, f64)> {
    PathElement::new(vec![from, to], color.stroke_width(1))
}

fn repair_by_layer(tables: &Tables, ablation: &str) -> Result<Figure> {
    let sql = format!(
        "select layer, head, self_repair, self_repair_error from head_summary \
         where ablation = '{ablation}' and subset = 'top'"
    );
    let heads = Rows::of(tables, &sql)?;
    let means = Rows::of(
        tables,
        &format!(
            "select layer, self_repair from layer_summary where ablation = '{ablation}' and subset = 'top' order by layer"
        ),
    )?;
    let (layer, repair, error) =
        (heads.numbers("layer")?, heads.numbers("self_repair")?, heads.numbers("self_repair_error")?);
    let ends: Vec<f64> = repair.iter().zip(&error).flat_map(|(r, e)| [r - e, r + e]).collect();
    let frame = Frame {
        title: &format!("Self-repair of each head, by layer ({ablation} ablation)"),
        x: "layer of the ablated head",
        y: "self-repair, mean of top tokens [logits]",
        x_range: layer_range(&layer),
        y_range: range(&ends),
        whole_x: true,
        legend: vec![
            (Mark::Dot, "a head, ± standard error over prompts".into(), BLUE.mix(1.0)),
            (Mark::Line, "mean of the layer".into(), ORANGE.mix(1.0)),
        ],
    };
    let (low, high) = frame.x_range;
    let svg = draw(&frame, |chart| {
        chart.draw_series([line((low, 0.0), (high, 0.0), GREY)]).map_err(failed)?;
        let bars = (0..layer.len())
            .filter(|&i| error[i].is_finite())
            .map(|i| line((layer[i], repair[i] - error[i]), (layer[i], repair[i] + error[i]), RGBColor(90, 160, 205)));
        chart.draw_series(bars).map_err(failed)?;
        chart
            .draw_series(layer.iter().zip(&repair).map(|(&x, &y)| Circle::new((x, y), 3, BLUE.filled())))
            .map_err(failed)?;
        let mean: Vec<(f64, f64)> = means.numbers("layer")?.into_iter().zip(means.numbers("self_repair")?).collect();
        chart.draw_series(LineSeries::new(mean, ORANGE.stroke_width(3))).map_err(failed)?;
        Ok(())
    })?;
    let caption = "Each point is one head: how much of its loss the rest of the model makes up for when it is ablated, \
                   on the tokens where its direct effect is highest.";
    Ok(Figure { name: format!("repair_by_layer_{ablation}"), caption: caption.into(), sql, svg })
}

fn causes_by_layer(tables: &Tables, ablation: &str) -> Result<Figure> {
    let sql = format!(
        "select layer, repair_attention, repair_mlp, repair_norm, self_repair from layer_summary \
         where ablation = '{ablation}' and subset = 'top' order by layer"
    );
    let rows = Rows::of(tables, &sql)?;
    let layer = rows.numbers("layer")?;
    let causes: Vec<Vec<f64>> = CAUSES.iter().map(|(column, ..)| rows.numbers(column)).collect::<Result<_>>()?;
    let stack = |i: usize, sign: f64| causes.iter().map(|c| (sign * c[i]).max(0.0)).sum::<f64>() * sign;
    let ends: Vec<f64> = (0..layer.len()).flat_map(|i| [stack(i, 1.0), stack(i, -1.0)]).collect();
    let frame = Frame {
        title: &format!("What repairs, by layer of the ablated head ({ablation} ablation)"),
        x: "layer of the ablated head",
        y: "mean self-repair of top tokens [logits]",
        x_range: layer_range(&layer),
        y_range: range(&ends),
        whole_x: true,
        legend: CAUSES
            .iter()
            .map(|(_, label, color)| (Mark::Box, label.to_string(), color.mix(1.0)))
            .chain([(Mark::Dot, "self-repair, their sum".into(), BLACK.mix(1.0))])
            .collect(),
    };
    let (low, high) = frame.x_range;
    let total = rows.numbers("self_repair")?;
    let svg = draw(&frame, |chart| {
        let mut tops = vec![(0.0, 0.0); layer.len()];
        for (values, (_, _, color)) in causes.iter().zip(CAUSES) {
            let bars = (0..layer.len()).map(|i| {
                let top = if values[i] >= 0.0 { &mut tops[i].0 } else { &mut tops[i].1 };
                let from = *top;
                *top += values[i];
                Rectangle::new([(layer[i] - 0.36, from), (layer[i] + 0.36, *top)], color.filled())
            });
            let bars: Vec<_> = bars.collect();
            chart.draw_series(bars).map_err(failed)?;
        }
        chart.draw_series([line((low, 0.0), (high, 0.0), GREY)]).map_err(failed)?;
        chart
            .draw_series(layer.iter().zip(&total).map(|(&x, &y)| Circle::new((x, y), 4, BLACK.filled())))
            .map_err(failed)?;
        Ok(())
    })?;
    let caption = "Self-repair split into its causes: later heads, MLPs (from the ablated head's own layer on), and the \
                   final norm, whose scale changes when the stream does. Negative bars made the loss larger.";
    Ok(Figure { name: format!("causes_by_layer_{ablation}"), caption: caption.into(), sql, svg })
}

fn effect_against_change(tables: &Tables, ablation: &str) -> Result<Figure> {
    let sql = format!(
        "select layer, head, direct_effect - ablated_direct_effect as loss, logit_change from head_summary \
         where ablation = '{ablation}' and subset = 'top'"
    );
    let rows = Rows::of(tables, &sql)?;
    let (layer, x, y) = (rows.numbers("layer")?, rows.numbers("loss")?, rows.numbers("logit_change")?);
    let (first, last) = layer.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), &l| (a.min(l), b.max(l)));
    let shade = |l: f64| {
        let t = (l - first) / (last - first).max(1.0);
        let mix = |a: u8, b: u8| (f64::from(a) * (1.0 - t) + f64::from(b) * t) as u8;
        RGBColor(mix(150, 0), mix(200, 40), mix(235, 110))
    };
    let frame = Frame {
        title: &format!("Direct effect taken away against change of the logit ({ablation} ablation)"),
        x: "direct effect less that of the replacement, mean of top tokens [logits]",
        y: "change of the logit when ablated [logits]",
        x_range: range(&x),
        y_range: range(y.iter().chain(&x.iter().map(|v| -v).collect::<Vec<_>>())),
        whole_x: false,
        legend: vec![
            (Mark::Line, "no repair: change = − what was taken away".into(), ORANGE.mix(1.0)),
            (Mark::Dot, format!("a head of layer {first}"), shade(first).mix(1.0)),
            (Mark::Dot, format!("of layer {last}"), shade(last).mix(1.0)),
        ],
    };
    let (low, high) = frame.x_range;
    let svg = draw(&frame, |chart| {
        chart.draw_series([line((low, 0.0), (high, 0.0), GREY)]).map_err(failed)?;
        chart.draw_series([line((low, -low), (high, -high), ORANGE)]).map_err(failed)?;
        let points = (0..x.len()).map(|i| Circle::new((x[i], y[i]), 4, shade(layer[i]).filled()));
        chart.draw_series(points).map_err(failed)?;
        Ok(())
    })?;
    let caption = "Without self-repair, ablating a head would lower the logit by its direct effect less that of what \
                   replaces it, and the heads would lie on the line. Heads above it are repaired.";
    Ok(Figure { name: format!("effect_against_change_{ablation}"), caption: caption.into(), sql, svg })
}

fn quantiles_by_layer(tables: &Tables, ablation: &str) -> Result<Figure> {
    let sql = format!(
        "select layer, quantile, self_repair from repair_quantiles \
         where ablation = '{ablation}' order by layer, quantile"
    );
    let rows = Rows::of(tables, &sql)?;
    let (layer, quantile, repair) = (rows.numbers("layer")?, rows.numbers("quantile")?, rows.numbers("self_repair")?);
    let at = |q: f64| -> Vec<(f64, f64)> {
        (0..layer.len()).filter(|&i| (quantile[i] - q).abs() < 1e-4).map(|i| (layer[i], repair[i])).collect()
    };
    let bands = [(0.01, 0.99, 0.14), (0.05, 0.95, 0.22), (0.25, 0.75, 0.4)];
    let frame = Frame {
        title: &format!("How self-repair is spread over tokens ({ablation} ablation)"),
        x: "layer of the ablated head",
        y: "self-repair of a token [logits]",
        x_range: layer_range(&layer),
        y_range: range(&repair),
        whole_x: true,
        legend: bands
            .iter()
            .map(|(from, to, mix)| (Mark::Box, format!("{:.0} % of the tokens", 100.0 * (to - from)), BLUE.mix(*mix)))
            .chain([(Mark::Line, "median".into(), ORANGE.mix(1.0))])
            .collect(),
    };
    let (low, high) = frame.x_range;
    let svg = draw(&frame, |chart| {
        for (from, to, strength) in bands {
            let outline: Vec<(f64, f64)> = at(from).into_iter().chain(at(to).into_iter().rev()).collect();
            chart.draw_series([Polygon::new(outline, BLUE.mix(strength).filled())]).map_err(failed)?;
        }
        chart.draw_series([line((low, 0.0), (high, 0.0), GREY)]).map_err(failed)?;
        chart.draw_series(LineSeries::new(at(0.5), ORANGE.stroke_width(3))).map_err(failed)?;
        Ok(())
    })?;
    let caption = "All tokens, not only the top ones: most are hardly touched by one head, and self-repair is a matter \
                   of the tails.";
    Ok(Figure { name: format!("quantiles_by_layer_{ablation}"), caption: caption.into(), sql, svg })
}
