//! What the erasers react to: the same ablation with later components held, or with the head's output projected.

use anyhow::Result;

use super::{Asked, Figure, LayerColours, Study, ask};
use crate::chart::{Axis, Chart, Key, Mark, ORANGE, Panel, common};

const THEME: &str = "Anti-Erasure";

pub fn figures(study: &Study) -> Result<Vec<Figure>> {
    let mut out = Vec::new();
    let rows = study.rows(&ask!("holds"))?;
    for (ablation, hold) in rows.texts("ablation")?.iter().zip(rows.texts("hold")?) {
        out.extend(held(study, ablation, &hold)?);
    }
    out.extend(projected(study)?);
    Ok(out)
}

/// Logit change with erasers held against that without, a point a head.
fn held(study: &Study, ablation: &str, hold: &str) -> Result<Option<Figure>> {
    let sql = ask!("hold_against_free", ablation = ablation, hold = hold);
    let what = match hold {
        "erasers" => "every later eraser held".to_string(),
        "heads" => "all later heads held".to_string(),
        "mlps" => "all later MLPs held".to_string(),
        "last_mlp" => "the last MLP held".to_string(),
        name => format!("{name} held"),
    };
    let axes = ("mean change of the logit, without a hold [logits]".to_string(), format!("the same, {what} [logits]"));
    let Some(chart) = against(study, &sql, ("free", "held"), axes)? else { return Ok(None) };
    Ok(Some(Figure {
        name: format!("hold_{hold}_{ablation}"),
        theme: THEME,
        caption: format!(
            "Ablating each head with {what} at its clean value, against ablating it alone. Heads below the line lose \
            more when those components cannot react; the distance is the self-repair by those components."
        ),
        sql: vec![sql],
        chart: Chart {
            title: format!("Change of the logit with and without {what}"),
            settings: study.settings.line(&format!("{ablation} ablation")),
            ..chart
        },
    }))
}

/// Projecting the head's output off, or onto, the token's direction, against replacing all of it.
fn projected(study: &Study) -> Result<Vec<Figure>> {
    let whole = ["zero", "mean", "resample"].iter().find(|w| study.ablations.iter().any(|a| a == **w));
    let Some(whole) = whole else { return Ok(Vec::new()) };
    let mut out = Vec::new();
    for kind in study.ablations.iter().filter(|a| a.starts_with("project_")) {
        let sql = ask!("projected_against_whole", whole = *whole, projected = kind.as_str());
        let axes = (
            format!("mean change of the logit, {whole} ablation [logits]"),
            format!("the same, {} [logits]", kind.replace('_', " ")),
        );
        let Some(chart) = against(study, &sql, ("whole", "projected"), axes)? else { continue };
        let what = if kind == "project_out" { "off" } else { "onto" };
        out.push(Figure {
            name: format!("{kind}_against_{whole}"),
            theme: THEME,
            caption: format!(
                "The head's output projected {what} the token's direction, against {whole} ablation of the whole \
                output. It shows whether the repairing components react to the direction of the token or to the rest."
            ),
            sql: vec![sql],
            chart: Chart {
                title: format!("Change of the logit when a head is projected {what} the token's direction"),
                settings: study.settings.line(&format!("{kind} and {whole} ablation")),
                ..chart
            },
        });
    }
    Ok(out)
}

/// Two columns against each other with the line y = x, a panel a subset; title and settings are the caller's.
fn against(study: &Study, sql: &Asked, columns: (&str, &str), axes: (String, String)) -> Result<Option<Chart>> {
    let rows = study.rows(sql)?;
    if rows.is_empty() {
        return Ok(None);
    }
    let colours = LayerColours::of(&rows.numbers("layer")?);
    let mut panels = Vec::new();
    for (subset, title) in [("top", "top tokens of each head"), ("all", "all tokens")] {
        let rows = rows.filtered("subset", subset)?;
        let (x, y) = (rows.numbers(columns.0)?, rows.numbers(columns.1)?);
        let range = common(&x, &y);
        panels.push(
            Panel::new(title, Axis::numbers(axes.0.as_str(), range), Axis::numbers(axes.1.as_str(), range))
                .zero()
                .with(Mark::thin((0.0, range.0), (0.0, range.1), crate::chart::Colour::Soft))
                .through_origin(1.0, ORANGE)
                .with(colours.points(&rows.numbers("layer")?, &rows.numbers("head")?, &x, &y)),
        );
    }
    Ok(Some(Chart {
        title: String::new(),
        settings: String::new(),
        legend: vec![Key::Dashed(ORANGE, "y = x: no difference".into()), colours.key()],
        panels,
        columns: 2,
        height: 300.0,
    }))
}
