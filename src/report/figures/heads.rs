//! Does self-repair exist, how much of it is there, and where?

use anyhow::Result;

use super::{Figure, LayerColours, Study, ask, head_name, size_at};
use crate::chart::{Axis, BLUE, Chart, Colour, Key, Mark, NamedPoint, ORANGE, Panel, heat, heat_key, plain, with_zero};

const THEME: &str = "How much self-repair, and where";

pub fn figures(study: &Study) -> Result<Vec<Figure>> {
    let mut out = Vec::new();
    for ablation in &study.ablations {
        out.push(repair_by_layer(study, ablation)?);
        out.push(effect_against_change(study, ablation)?);
        out.push(loss_against_change(study, ablation)?);
        out.push(thresholds(study, ablation)?);
        out.push(fraction_by_layer(study, ablation)?);
        out.push(heat_of_heads(study, ablation)?);
    }
    Ok(out)
}

fn repair_by_layer(study: &Study, ablation: &str) -> Result<Figure> {
    let heads = ask!("repair_by_layer_heads", ablation = ablation);
    let means = ask!("repair_by_layer_means", ablation = ablation);
    let sure = ask!("repair_by_layer_intervals", ablation = ablation);
    let (rows, mean) = (study.rows(&heads)?, study.rows(&means)?);
    let mut sql = vec![heads, means];
    let mut band = Vec::new();
    if study.has(&["uncertainty"])? {
        let rows = study.rows(&sure)?;
        band = rows.points("layer", "low")?;
        band.extend(rows.points("layer", "high")?.into_iter().rev());
        sql.push(sure);
    }
    let (layer, head) = (rows.numbers("layer")?, rows.numbers("head")?);
    let (repair, error) = (rows.numbers("self_repair")?, rows.numbers("self_repair_error")?);
    let ends = (0..layer.len()).flat_map(|i| [repair[i], repair[i] - error[i], repair[i] + error[i]]);
    let bars = (0..layer.len()).filter(|&i| error[i].is_finite());
    let bars = bars.map(|i| ((layer[i], repair[i] - error[i]), (layer[i], repair[i] + error[i]))).collect();
    let points = (0..layer.len()).map(|i| NamedPoint {
        at: (layer[i], repair[i]),
        colour: BLUE,
        name: format!("{}: {:.3} ± {:.3} logits", head_name(layer[i], head[i]), repair[i], error[i]),
    });
    let x = Axis::whole("layer of the ablated head", &layer);
    let y = Axis::numbers("self-repair, mean of top tokens [logits]", with_zero(ends));
    let panel = Panel::new("", x, y)
        .zero()
        .with(Mark::Area { outline: band, colour: ORANGE, opacity: 0.25 })
        .with(Mark::Segments { from_to: bars, colour: Colour::Hue(5), width: 1.0 })
        .with(Mark::Points { points: points.collect(), radius: 3.0 })
        .with(Mark::line(mean.points("layer", "self_repair")?, ORANGE));
    Ok(Figure {
        name: format!("repair_by_layer_{ablation}"),
        theme: THEME,
        caption: "Each point is one head: how much of its loss the rest of the model repairs when the head is \
            ablated, on the tokens where its direct effect is highest."
            .into(),
        sql,
        chart: Chart {
            title: "Self-repair of each head, by layer".into(),
            settings: study.settings.line(&format!("{ablation} ablation")),
            legend: vec![
                Key::Dot(BLUE, "a head, ± standard error over prompts".into()),
                Key::Line(ORANGE, "mean of the layer, with its 95 % interval over prompts".into()),
            ],
            panels: vec![panel],
            columns: 1,
            height: 330.0,
        },
    })
}

/// One panel a subset of tokens: mean direct effect against mean logit change, a point a head.
fn effect_against_change(study: &Study, ablation: &str) -> Result<Figure> {
    let sql = ask!("effect_against_change", ablation = ablation);
    let rows = study.rows(&sql)?;
    let colours = LayerColours::of(&rows.numbers("layer")?);
    let mut panels = Vec::new();
    for (subset, title) in [("top", "top tokens of each head"), ("all", "all tokens")] {
        let rows = rows.filtered("subset", subset)?;
        let (layer, head) = (rows.numbers("layer")?, rows.numbers("head")?);
        let (x, y) = (rows.numbers("direct_effect")?, rows.numbers("logit_change")?);
        panels.push(scatter(title, "mean direct effect [logits]", &colours, &layer, &head, &x, &y));
    }
    Ok(Figure {
        name: format!("effect_against_change_{ablation}"),
        theme: THEME,
        caption: "If nothing compensated and nothing replaced the head's output, ablating it would lower the logit by \
                  its direct effect, and the heads would lie on the line. Heads above it are repaired."
            .into(),
        sql: vec![sql],
        chart: Chart {
            title: "Direct effect against change of the logit".into(),
            settings: study.settings.line(&format!("{ablation} ablation")),
            legend: vec![Key::Dashed(ORANGE, "y = −x: no self-repair".into()), colours.key()],
            panels,
            columns: 2,
            height: 300.0,
        },
    })
}

fn scatter(
    title: &str,
    label: &str,
    colours: &LayerColours,
    layer: &[f64],
    head: &[f64],
    x: &[f64],
    y: &[f64],
) -> Panel {
    // The line counts as far as the points reach.
    let low = x.iter().copied().filter(|v| v.is_finite()).fold(0.0, f64::min);
    let ends = y.iter().copied().chain([-low]);
    Panel::new(
        title,
        Axis::numbers(label, with_zero(x.iter().copied())),
        Axis::numbers("mean change of the logit when ablated [logits]", with_zero(ends)),
    )
    .zero()
    .through_origin(-1.0, ORANGE)
    .with(colours.points(layer, head, x, y))
}

/// The same with what was really taken away: the direct effect less that of the replacement.
fn loss_against_change(study: &Study, ablation: &str) -> Result<Figure> {
    let sql = ask!("loss_against_change", ablation = ablation);
    let rows = study.rows(&sql)?;
    let (layer, head) = (rows.numbers("layer")?, rows.numbers("head")?);
    let (x, y) = (rows.numbers("loss")?, rows.numbers("logit_change")?);
    let colours = LayerColours::of(&layer);
    let label = "direct effect minus that of the replacement, mean of top tokens [logits]";
    Ok(Figure {
        name: format!("loss_against_change_{ablation}"),
        theme: THEME,
        caption:
            "What replaces a head has a direct effect of its own. Without self-repair, the logit would fall by the \
                  difference; how far a head lies above the line is its self-repair."
                .into(),
        chart: Chart {
            title: "Direct effect removed against change of the logit".into(),
            settings: study.settings.line(&format!("{ablation} ablation, top tokens")),
            legend: vec![Key::Dashed(ORANGE, "y = −x: no self-repair".into()), colours.key()],
            panels: vec![scatter("", label, &colours, &layer, &head, &x, &y)],
            columns: 1,
            height: 330.0,
        },
        sql: vec![sql],
    })
}

/// The paper's scatter for tokens on which a head's direct effect is large, whatever its sign.
fn thresholds(study: &Study, ablation: &str) -> Result<Figure> {
    let (every, large) = (ask!("effect_against_change", ablation = ablation), ask!("thresholds", ablation = ablation));
    let rows = study.rows(&every)?.filtered("subset", "all")?;
    let (layer, head) = (rows.numbers("layer")?, rows.numbers("head")?);
    let (x, y) = (rows.numbers("direct_effect")?, rows.numbers("logit_change")?);
    let (colours, label) = (LayerColours::of(&layer), "mean direct effect [logits]");
    let mut panels = vec![scatter("all tokens", label, &colours, &layer, &head, &x, &y)];
    let rows = study.rows(&large)?;
    let (layer, head) = (rows.numbers("layer")?, rows.numbers("head")?);
    let (x, y) = (rows.numbers("direct_effect")?, rows.numbers("logit_change")?);
    let thresholds = rows.numbers("threshold")?;
    let mut from = 0;
    // Rows are in order of the threshold.
    for same in thresholds.chunk_by(|a, b| a == b) {
        let at = from..from + same.len();
        from = at.end;
        let title = format!("|direct effect| > {} logits", plain(same[0]));
        let (layer, head, x, y) = (&layer[at.clone()], &head[at.clone()], &x[at.clone()], &y[at]);
        panels.push(scatter(&title, label, &colours, layer, head, x, y));
    }
    Ok(Figure {
        name: format!("thresholds_{ablation}"),
        theme: THEME,
        caption: "The same for tokens on which the head's absolute direct effect exceeds each of \
            `analysis.thresholds`. A head without such tokens has no point."
            .into(),
        sql: vec![every, large],
        chart: Chart {
            title: "Direct effect against change of the logit, by size of the effect".into(),
            settings: study.settings.line(&format!("{ablation} ablation")),
            legend: vec![Key::Dashed(ORANGE, "y = −x: no self-repair".into()), colours.key()],
            panels,
            columns: 2,
            height: 240.0,
        },
    })
}

fn fraction_by_layer(study: &Study, ablation: &str) -> Result<Figure> {
    let sql = ask!("fraction_by_layer", ablation = ablation);
    let rows = study.rows(&sql)?;
    let series = [
        ("fraction_of_means", "ratio of the means", BLUE),
        ("fraction_clipped", "mean of the ratio per token, clipped to [0, 1]", ORANGE),
    ];
    let mut panels = Vec::new();
    for (subset, title) in [("top", "top tokens of each head"), ("all", "all tokens")] {
        let rows = rows.filtered("subset", subset)?;
        let layers = rows.numbers("layer")?;
        // A layer whose direct effects cancel has a ratio that says nothing and would hide the others.
        let shown = |v: f64| v.clamp(-1.0, 2.0);
        let ends = [rows.numbers("fraction_of_means")?, rows.numbers("fraction_clipped")?].concat();
        let y = Axis::numbers("self-repair / direct effect", with_zero(ends.into_iter().map(shown)));
        let mut panel = Panel::new(title, Axis::whole("layer of the ablated head", &layers), y).zero();
        for (column, _, colour) in series {
            panel.marks.push(Mark::line(rows.points("layer", column)?, colour));
        }
        panels.push(panel);
    }
    Ok(Figure {
        name: format!("fraction_by_layer_{ablation}"),
        theme: THEME,
        caption: "Self-repair as a fraction of the direct effect, mean over the heads of a layer. Values outside −1 … \
            2, from layers whose direct effects nearly cancel, are not drawn."
            .into(),
        sql: vec![sql],
        chart: Chart {
            title: "Self-repair as a fraction of direct effect, by layer".into(),
            settings: study.settings.line(&format!("{ablation} ablation")),
            legend: series.iter().map(|(_, label, colour)| Key::Line(*colour, (*label).into())).collect(),
            panels,
            columns: 2,
            height: 260.0,
        },
    })
}

/// Which heads matter and which are repaired, at a glance; the map of a narrow task.
fn heat_of_heads(study: &Study, ablation: &str) -> Result<Figure> {
    let sql = ask!("heads", ablation = ablation);
    let rows = study.rows(&sql)?;
    let (layer, head) = (rows.numbers("layer")?, rows.numbers("head")?);
    let columns =
        [("direct_effect", "direct effect"), ("logit_change", "change of the logit"), ("self_repair", "self-repair")];
    let mut all = Vec::new();
    for (column, _) in columns {
        all.push(rows.numbers(column)?);
    }
    // One head may do many times what the others do: the colour is full at the 98th percentile.
    let most = size_at(0.98, all.iter().flatten().copied());
    let panels = columns.iter().zip(&all).map(|((_, title), values)| {
        let cells = (0..layer.len()).map(|i| {
            (layer[i], head[i], values[i], format!("{}: {:.3} logits", head_name(layer[i], head[i]), values[i]))
        });
        Panel::new(*title, Axis::whole("layer", &layer), Axis::whole("head", &head)).with(heat(cells, most))
    });
    Ok(Figure {
        name: format!("heads_{ablation}"),
        theme: THEME,
        caption: "Means over all tokens, one cell per head. The colour scale ends at the 98th percentile; point at a \
            cell for its value."
            .into(),
        sql: vec![sql],
        chart: Chart {
            title: "Every head: direct effect, logit change and self-repair".into(),
            settings: study.settings.line(&format!("{ablation} ablation, all tokens")),
            legend: vec![heat_key("mean [logits]", most)],
            panels: panels.collect(),
            columns: 3,
            height: 230.0,
        },
    })
}
