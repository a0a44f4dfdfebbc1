//! How noisy self-repair is: token by token, prompt by prompt.

use anyhow::Result;

use super::{Figure, Study, ask};
use crate::chart::{Axis, BLUE, Chart, Colour, GREEN, Key, Mark, ORANGE, Panel, RED, plain, roomy, with_zero};
use crate::histogram::Histogram;
use crate::settings::grouped;

const THEME: &str = "How noisy it is";

/// Points of one head in the scatter; more would hide each other and weigh on the page.
const POINTS: f64 = 1500.0;

pub fn figures(study: &Study) -> Result<Vec<Figure>> {
    let mut out = Vec::new();
    for ablation in &study.ablations {
        out.push(tokens_of_heads(study, ablation)?);
        out.push(prompts_of_heads(study, ablation)?);
        out.push(quantiles_by_layer(study, ablation)?);
        out.extend(outcomes_by_decile(study, ablation)?);
    }
    Ok(out)
}

/// A point a token, for the strongest heads.
fn tokens_of_heads(study: &Study, ablation: &str) -> Result<Figure> {
    // Every n-th token by a rule that does not follow positions or prompts.
    let every = (study.settings.tokens / POINTS).ceil().max(1.0);
    let mut panels = Vec::new();
    let mut queries = Vec::new();
    for head in study.strongest(ablation, 4)? {
        let sql = head.ask(ask!("tokens_of_head", ablation = ablation, every = every as i64));
        let at = study.rows(&sql)?.points("direct_effect", "logit_change")?;
        let x = Axis::numbers("direct effect [logits]", with_zero(at.iter().map(|p| p.0)));
        let y = Axis::numbers("change of the logit [logits]", with_zero(at.iter().map(|p| p.1)));
        panels.push(
            Panel::new(head.name(), x, y)
                .zero()
                .with(Mark::Cloud { at, colour: BLUE, radius: 2.0, opacity: 0.4 })
                .through_origin(-1.0, ORANGE),
        );
        queries.push(sql);
    }
    let which = if every > 1.0 { format!(" One in {} tokens is drawn.", grouped(every)) } else { String::new() };
    Ok(Figure {
        name: format!("tokens_{ablation}"),
        theme: THEME,
        caption: format!(
            "The heads with most self-repair on their top tokens, one point per token.{which} Single tokens vary \
            widely; self-repair shows in the mean."
        ),
        sql: queries,
        chart: Chart {
            title: "Direct effect against change of the logit, token by token".into(),
            settings: study.settings.line(&format!("{ablation} ablation")),
            legend: vec![Key::Dot(BLUE, "a token".into()), Key::Dashed(ORANGE, "y = −x: no self-repair".into())],
            panels,
            columns: 2,
            height: 240.0,
        },
    })
}

/// The mean self-repair of each prompt: of all heads, and of the strongest.
fn prompts_of_heads(study: &Study, ablation: &str) -> Result<Figure> {
    let heads = study.strongest(ablation, 3)?;
    let all = ("all ablated heads".to_string(), ask!("prompts", ablation = ablation));
    let each = heads.iter().map(|h| (h.name(), h.ask(ask!("prompts_of_head", ablation = ablation))));
    let (mut panels, mut queries) = (Vec::new(), Vec::new());
    for (title, sql) in std::iter::once(all).chain(each) {
        let values = study.rows(&sql)?.numbers("self_repair")?;
        let histogram = Histogram::of(&values, 30);
        let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
        let top = histogram.shares.iter().copied().fold(0.0, f64::max);
        let x = Axis::numbers("mean self-repair of a prompt [logits]", roomy(histogram.ends()));
        let y = Axis::numbers("prompts [%]", (0.0, 1.08 * top));
        panels.push(
            Panel::new(title, x, y)
                .with(histogram.mark(BLUE, 0.8))
                .with(Mark::thin((0.0, 0.0), (0.0, 2.0 * top), Colour::Soft))
                .with(Mark::line(vec![(mean, 0.0), (mean, 2.0 * top)], ORANGE)),
        );
        queries.push(sql);
    }
    Ok(Figure {
        name: format!("prompts_{ablation}"),
        theme: THEME,
        caption: "How mean self-repair, over all tokens of a prompt, differs between prompts.".into(),
        sql: queries,
        chart: Chart {
            title: "Mean self-repair of a prompt".into(),
            settings: study.settings.line(&format!("{ablation} ablation, all tokens")),
            legend: vec![Key::Box(BLUE, 0.8, "prompts".into()), Key::Line(ORANGE, "their mean".into())],
            panels,
            columns: 2,
            height: 190.0,
        },
    })
}

fn quantiles_by_layer(study: &Study, ablation: &str) -> Result<Figure> {
    let sql = ask!("quantiles_by_layer", ablation = ablation);
    let rows = study.rows(&sql)?;
    let (layer, quantile, repair) = (rows.numbers("layer")?, rows.numbers("quantile")?, rows.numbers("self_repair")?);
    let at = |q: f64| -> Vec<(f64, f64)> {
        (0..layer.len()).filter(|&i| (quantile[i] - q).abs() < 1e-4).map(|i| (layer[i], repair[i])).collect()
    };
    let bands = [(0.01, 0.99, 0.16), (0.05, 0.95, 0.26), (0.25, 0.75, 0.45)];
    let mut panel = Panel::new(
        "",
        Axis::whole("layer of the ablated head", &layer),
        Axis::numbers("self-repair of a token [logits]", with_zero(repair.iter().copied())),
    );
    for (from, to, opacity) in bands {
        let outline = at(from).into_iter().chain(at(to).into_iter().rev()).collect();
        panel.marks.push(Mark::Area { outline, colour: BLUE, opacity });
    }
    let panel = panel.zero().with(Mark::line(at(0.5), ORANGE));
    let legend = bands
        .iter()
        .map(|(from, to, opacity)| Key::Box(BLUE, *opacity, format!("{} % of the tokens", plain(100.0 * (to - from)))));
    Ok(Figure {
        name: format!("quantiles_by_layer_{ablation}"),
        theme: THEME,
        caption: "All tokens, not only the top ones: one head has little effect on most of them, and self-repair is \
            in the tails."
            .into(),
        sql: vec![sql],
        chart: Chart {
            title: "Distribution of self-repair over tokens".into(),
            settings: study.settings.line(&format!("{ablation} ablation, all tokens")),
            legend: legend.chain([Key::Line(ORANGE, "median".into())]).collect(),
            panels: vec![panel],
            columns: 1,
            height: 330.0,
        },
    })
}

/// Shares of tokens not, partly and over-repaired, by how much direct effect the head had there.
fn outcomes_by_decile(study: &Study, ablation: &str) -> Result<Option<Figure>> {
    let sql = ask!("outcomes_by_effect", ablation = ablation);
    let rows = study.rows(&sql)?;
    if rows.is_empty() {
        return Ok(None);
    }
    let effect = rows.numbers("direct_effect")?;
    let series = [
        ("not_repaired", "not repaired", RED),
        ("partly_repaired", "partly", BLUE),
        ("over_repaired", "over-repaired", GREEN),
    ];
    let names = effect.iter().map(|v| format!("{v:.2}").replace('-', "−"));
    let axis = Axis::names("tenths of the tokens, by their mean direct effect [logits]", names);
    let mut panel = Panel::new("", axis, Axis::numbers("tokens [%]", (0.0, 100.0)));
    for (column, _, colour) in series {
        let at: Vec<_> = rows.numbers(column)?.into_iter().enumerate().map(|(i, y)| (i as f64, y)).collect();
        panel.marks.push(Mark::Cloud { at: at.clone(), colour, radius: 4.0, opacity: 1.0 });
        panel.marks.push(Mark::line(at, colour));
    }
    Ok(Some(Figure {
        name: format!("outcomes_by_effect_{ablation}"),
        theme: THEME,
        caption:
            "Of the tokens on which ablation removes more than 0.05 logits of direct effect: the shares that are not \
            repaired, partly repaired and over-repaired."
                .into(),
        sql: vec![sql],
        chart: Chart {
            title: "How much of the loss is repaired, by the head's direct effect".into(),
            settings: study.settings.line(&format!("{ablation} ablation")),
            legend: series.iter().map(|(_, label, colour)| Key::Line(*colour, (*label).into())).collect(),
            panels: vec![panel],
            columns: 1,
            height: 280.0,
        },
    }))
}
