//! Which neurons repair, how many it takes, and whether they erased before.

use anyhow::Result;

use super::{Asked, Figure, NamedPoint, Study, ask, size_at};
use crate::Rows;
use crate::chart::{
    Axis, BLUE, Cell, Chart, Colour, GREEN, Key, Margins, Mark, ORANGE, PURPLE, Panel, RED, extent, with_zero,
};
use crate::histogram::Histogram;

const THEME: &str = "Which neurons repair";

/// Columns of `neuron_curves`: share of tokens whose n-th change exceeds this share of the head's direct effect.
const EXCEEDS: [(&str, &str, Colour); 5] = [
    ("above_50", "50 %", BLUE),
    ("above_10", "10 %", ORANGE),
    ("above_5", "5 %", GREEN),
    ("above_2_5", "2.5 %", PURPLE),
    ("above_1", "1 %", RED),
];

/// Heads that the figures are about: those with most self-repair.
const HEADS_SHOWN: usize = 4;

pub fn figures(study: &Study) -> Result<Vec<Figure>> {
    let mut out = Vec::new();
    let Some(ablation) = study.main_ablation() else { return Ok(out) };
    if study.has(&["neuron_curves"])? {
        out.extend(exceeding(study, ablation)?);
        out.extend(cumulative(study, ablation)?);
    }
    if study.has(&["neuron_totals"])? {
        out.extend(top_percent(study, ablation)?);
        out.extend(share_of_repair(study, ablation)?);
    }
    if study.has(&["neuron_repairs"])? {
        out.extend(anti_erasure(study, ablation)?);
        out.extend(recurring(study, ablation)?);
    }
    if study.has(&["neuron_repairs", "neuron_totals"])? {
        out.extend(top_five(study, ablation)?);
    }
    Ok(out)
}

/// Curves of the strongest heads and their last measured MLP.
fn curves(study: &Study, ablation: &str) -> Result<Vec<(String, Rows, Asked)>> {
    let mut out = Vec::new();
    for head in study.strongest(ablation, HEADS_SHOWN)? {
        let sql = head.ask(ask!("neuron_curves", ablation = ablation));
        let rows = study.rows(&sql)?;
        if !rows.is_empty() {
            out.push((format!("{}, MLP{}", head.name(), rows.number("neuron_layer")?), rows, sql));
        }
    }
    Ok(out)
}

fn rank_axis(ranks: &[f64]) -> Axis {
    let (low, high) = extent(ranks.iter().copied()).unwrap_or((1.0, 1.0));
    Axis::log("rank of the neuron by its change (logarithmic)", (low.max(1.0), high.max(low.max(1.0) * 2.0)))
}

fn exceeding(study: &Study, ablation: &str) -> Result<Option<Figure>> {
    let (mut panels, mut queries) = (Vec::new(), Vec::new());
    for (title, rows, sql) in curves(study, ablation)? {
        let ranks = rows.numbers("place")?;
        let y = Axis::numbers("tokens on which the n-th neuron exceeds it [%]", (0.0, 100.0));
        let mut panel = Panel::new(title, rank_axis(&ranks), y);
        for (column, _, colour) in EXCEEDS {
            let at = rows.points("place", column)?.into_iter().map(|(x, y)| (x, 100.0 * y)).collect();
            panel.marks.push(Mark::line(at, colour));
        }
        panels.push(panel);
        queries.push(sql);
    }
    Ok((!panels.is_empty()).then(|| Figure {
        name: format!("neurons_exceeding_{ablation}"),
        theme: THEME,
        caption:
            "On how many of the head's top tokens the n-th most repairing neuron changes its direct effect by more \
            than the given share of the head's direct effect."
                .into(),
        sql: queries,
        chart: Chart {
            title: "How many neurons repair, and how strongly".into(),
            settings: study.settings.line(&format!("{ablation} ablation, top tokens")),
            legend: EXCEEDS
                .iter()
                .map(|(_, label, colour)| Key::Line(*colour, format!("more than {label} of the direct effect")))
                .collect(),
            panels,
            columns: 2,
            height: 230.0,
        },
    }))
}

fn cumulative(study: &Study, ablation: &str) -> Result<Option<Figure>> {
    let found = curves(study, ablation)?;
    if found.is_empty() {
        return Ok(None);
    }
    let mut ranks = Vec::new();
    for (_, rows, _) in &found {
        ranks.extend(rows.numbers("place")?);
    }
    let y = Axis::numbers("share of the summed absolute change [%]", (0.0, 100.0));
    let mut panel = Panel::new("", rank_axis(&ranks), y);
    let (mut legend, mut queries) = (Vec::new(), Vec::new());
    for (i, (title, rows, sql)) in found.into_iter().enumerate() {
        let at = rows.points("place", "cumulative_share")?.into_iter().map(|(x, y)| (x, 100.0 * y)).collect();
        panel.marks.push(Mark::line(at, Colour::Hue(i)));
        legend.push(Key::Line(Colour::Hue(i), title));
        queries.push(sql);
    }
    Ok(Some(Figure {
        name: format!("neurons_cumulative_{ablation}"),
        theme: THEME,
        caption: "The first n neurons, in each token's order of descending change, and their share of the absolute \
                  change of all neurons of that MLP; mean over the head's top tokens."
            .into(),
        sql: queries,
        chart: Chart {
            title: "Cumulative share of the change, by neuron".into(),
            settings: study.settings.line(&format!("{ablation} ablation, top tokens")),
            legend,
            panels: vec![panel],
            columns: 1,
            height: 280.0,
        },
    }))
}

/// A share of something in `neuron_totals`, in percent, by (head, token): `sql` counts its bins of a 40th of `range`.
struct Share {
    name: &'static str,
    title: &'static str,
    caption: &'static str,
    label: &'static str,
    range: (f64, f64),
    sql: Asked,
}

/// Its histogram.
fn share(study: &Study, ablation: &str, of: Share) -> Result<Option<Figure>> {
    let (rows, range) = (study.rows(&of.sql)?, of.range);
    if rows.is_empty() {
        return Ok(None);
    }
    let width = (range.1 - range.0) / 40.0;
    let histogram = Histogram::counted(range.0, width, 40, &rows.numbers("bin")?, &rows.numbers("rows")?);
    let top = largest(&histogram.shares);
    let shares = Axis::numbers("heads × top tokens [%]", (0.0, 1.08 * top.max(1.0)));
    let panel = Panel::new("", Axis::numbers(of.label, range), shares)
        .with(histogram.mark(BLUE, 0.8))
        .with(Mark::thin((0.0, 0.0), (0.0, 2.0 * top), Colour::Soft));
    Ok(Some(Figure {
        name: format!("{}_{ablation}", of.name),
        theme: THEME,
        caption: of.caption.into(),
        sql: vec![of.sql],
        chart: Chart {
            title: of.title.into(),
            settings: study.settings.line(&format!("{ablation} ablation, top tokens")),
            legend: Vec::new(),
            panels: vec![panel],
            columns: 1,
            height: 240.0,
        },
    }))
}

fn top_percent(study: &Study, ablation: &str) -> Result<Option<Figure>> {
    let sql = ask!("neurons_top_percent", ablation = ablation);
    let of = Share {
        name: "neurons_top_percent",
        title: "The top 1 % of neurons in the positive change of the last MLP",
        caption: "Share of the positive change of the last MLP's neurons that comes from the 1 % with the largest \
            change on that token.",
        label: "share of the summed positive change [%]",
        range: (0.0, 100.0),
        sql,
    };
    share(study, ablation, of)
}

/// Of the first five, those that fell are not repair: as `top_five_share` of `neuron_summary`, but by token.
fn top_five(study: &Study, ablation: &str) -> Result<Option<Figure>> {
    let sql = ask!("neurons_top_five", ablation = ablation);
    let of = Share {
        name: "neurons_top_five",
        title: "The five most repairing neurons in the positive change of the last MLP",
        caption: "Share of the positive change of the last MLP's neurons that comes from the five with the largest \
            change on that token.",
        label: "share of the summed positive change [%]",
        range: (0.0, 100.0),
        sql,
    };
    share(study, ablation, of)
}

fn share_of_repair(study: &Study, ablation: &str) -> Result<Option<Figure>> {
    let sql = ask!("neurons_share_of_repair", ablation = ablation);
    let of = Share {
        name: "neurons_share_of_repair",
        title: "Share of self-repair that comes from the last MLP",
        caption: "On top tokens with self-repair above 0.05 logits. Values outside −100 … 200 % are counted, but not \
            drawn.",
        label: "last MLP's change / self-repair [%]",
        range: (-100.0, 200.0),
        sql,
    };
    share(study, ablation, of)
}

/// The top repairing neuron of each token: what it wrote before, and what it writes now.
fn anti_erasure(study: &Study, ablation: &str) -> Result<Option<Figure>> {
    let sql = ask!("anti_erasure", ablation = ablation);
    let rows = study.rows(&sql)?;
    if rows.is_empty() {
        return Ok(None);
    }
    let (before, after, mlp) = (rows.numbers("before")?, rows.numbers("after")?, rows.numbers("mlp")?);
    // A few MLPs write very much: the colour is full at the 95th percentile.
    let most = size_at(0.95, mlp.iter().copied()).max(1e-6);
    let (neuron, layer) = (rows.numbers("neuron")?, rows.numbers("neuron_layer")?);
    let points = (0..before.len()).map(|i| NamedPoint {
        at: (before[i], after[i]),
        colour: Colour::Shade((mlp[i] / most + 1.0) / 2.0),
        name: format!("neuron {} of layer {}: {:.3} → {:.3} logits", neuron[i], layer[i], before[i], after[i]),
    });
    let (along_x, along_y) = (Histogram::of(&before, 60), Histogram::of(&after, 60));
    let margins = Margins {
        x: along_x.mark(Colour::Soft, 0.7),
        y: along_y.mark(Colour::Soft, 0.7),
        most: (largest(&along_x.shares), largest(&along_y.shares)),
    };
    let panel = Panel::new(
        "",
        Axis::numbers("the neuron's direct effect, clean [logits]", with_zero(before.iter().copied())),
        Axis::numbers("the same with the head ablated [logits]", with_zero(after.iter().copied())),
    )
    .zero()
    .with(Mark::thin((0.0, -1e6), (0.0, 1e6), Colour::Soft))
    .through_origin(1.0, ORANGE)
    .with(Mark::Points { points: points.collect(), radius: 2.5 })
    .with_margins(margins);
    let erased = before.iter().filter(|b| **b < 0.0).count() as f64 / before.len() as f64;
    Ok(Some(Figure {
        name: format!("anti_erasure_{ablation}"),
        theme: THEME,
        caption: format!(
            "The neuron that repairs most, for ablated heads and their top tokens (at most 2,500 of them). Left of zero it \
             erased: it pushed against the correct token, and with the head gone it pushes less. That is so for {:.0} % \
             of them. Along the axes: how the two are distributed.",
            100.0 * erased
        ),
        sql: vec![sql],
        chart: Chart {
            title: "Anti-Erasure: the top repairing neuron before and after".into(),
            settings: study.settings.line(&format!("{ablation} ablation, top tokens, last MLP measured")),
            legend: vec![
                Key::Dashed(ORANGE, "y = x: no change".into()),
                Key::Scale {
                    label: "direct effect of its MLP [logits]".into(),
                    ends: [crate::chart::plain(-most), crate::chart::plain(most)],
                    scale: Colour::Shade,
                },
            ],
            panels: vec![panel],
            columns: 1,
            height: 360.0,
        },
    }))
}

fn largest(shares: &[f64]) -> f64 {
    shares.iter().copied().fold(0.0, f64::max)
}

/// Whether the same neurons repair again and again.
fn recurring(study: &Study, ablation: &str) -> Result<Option<Figure>> {
    let sql = ask!("recurring_neurons", ablation = ablation);
    let rows = study.rows(&sql)?;
    if rows.is_empty() {
        return Ok(None);
    }
    let (share, neuron, change) = (rows.numbers("share")?, rows.texts("neuron")?, rows.numbers("change")?);
    let layer = rows.number("neuron_layer")?;
    let boxes = (0..share.len()).map(|i| Cell {
        corners: ((i as f64 - 0.36, 0.0), (i as f64 + 0.36, share[i])),
        colour: BLUE,
        name: format!("neuron {}: {:.1} % of tokens, mean change {:+.3} logits", neuron[i], share[i], change[i]),
    });
    let top = share.iter().copied().fold(0.0, f64::max);
    let names = neuron.iter().cloned();
    let panel = Panel::new(
        "",
        Axis::names(format!("neuron of layer {layer}"), names),
        Axis::numbers("heads × top tokens [%]", (0.0, 1.08 * top)),
    )
    .with(Mark::Boxes { boxes: boxes.collect(), opacity: 1.0 });
    Ok(Some(Figure {
        name: format!("recurring_neurons_{ablation}"),
        theme: THEME,
        caption: "On how many of the ablated heads' top tokens a neuron is among the ten that repair most.".into(),
        sql: vec![sql],
        chart: Chart {
            title: "Neurons that are often among the ten most repairing".into(),
            settings: study.settings.line(&format!("{ablation} ablation, top tokens, MLP{layer}")),
            legend: Vec::new(),
            panels: vec![panel],
            columns: 1,
            height: 260.0,
        },
    }))
}
