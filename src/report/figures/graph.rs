//! Who repairs whom: one head's repairers token by token, and the repair graph.

use std::collections::BTreeMap;

use anyhow::Result;

use super::{Figure, Head, Study, ask, head_name};
use crate::chart::{Axis, Chart, Panel, heat, heat_key};

const THEME: &str = "Which components repair";

/// Rows and columns of the heat map of one head.
const TOKENS: usize = 40;
const REPAIRERS: usize = 24;

pub fn figures(study: &Study) -> Result<Vec<Figure>> {
    let mut out = Vec::new();
    if study.has(&["component_repairs"])? {
        for ablation in &study.ablations {
            out.extend(repairers_of_one_head(study, ablation)?);
        }
    }
    if study.has(&["repair_graph"])? {
        for ablation in &study.ablations {
            out.extend(graph(study, ablation)?);
        }
    }
    Ok(out)
}

/// The strongest head's repairers, a column a token: do different prompts use different ones?
fn repairers_of_one_head(study: &Study, ablation: &str) -> Result<Option<Figure>> {
    let Some(&head) = study.strongest(ablation, 1)?.first() else { return Ok(None) };
    let sql = head.ask(ask!("repairers_of_head", ablation = ablation));
    let rows = study.rows(&sql)?;
    if rows.is_empty() {
        return Ok(None);
    }
    let (layer, of_head) = (rows.numbers("repairer_layer")?, rows.numbers("repairer_head")?);
    let names: Vec<String> = layer.iter().zip(of_head).map(|(&l, h)| head_name(l, h)).collect();
    let (prompt, position, change) = (rows.numbers("prompt")?, rows.numbers("position")?, rows.numbers("change")?);
    // The components that change most over all tokens, in the order of the model.
    let mut sizes: BTreeMap<(i64, &str), f64> = BTreeMap::new();
    let mut tokens: Vec<(f64, f64)> = Vec::new();
    for i in 0..names.len() {
        *sizes.entry((layer[i] as i64, &names[i])).or_default() += change[i].abs();
        if tokens.last() != Some(&(prompt[i], position[i])) {
            tokens.push((prompt[i], position[i]));
        }
    }
    // Evenly over the prompts, because the question is whether they differ.
    let step = tokens.len().div_ceil(TOKENS).max(1);
    let shown: Vec<(f64, f64)> = tokens.iter().copied().step_by(step).collect();
    let mut largest: Vec<_> = sizes.into_iter().collect();
    largest.sort_by(|a, b| b.1.total_cmp(&a.1));
    largest.truncate(REPAIRERS);
    largest.sort_by_key(|a| a.0);
    let repairers: Vec<&str> = largest.iter().map(|((_, name), _)| *name).collect();
    let most = change.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    let cells = (0..names.len()).filter_map(|i| {
        let x = shown.iter().position(|t| *t == (prompt[i], position[i]))?;
        let y = repairers.iter().position(|r| *r == names[i])?;
        let name = format!("{} on prompt {} position {}: {:+.3} logits", names[i], prompt[i], position[i], change[i]);
        Some((x as f64, y as f64, change[i], name))
    });
    let x = Axis::names("top token (prompt:position)", shown.iter().map(|(p, q)| format!("{p}:{q}")));
    let y = Axis::names("repairing component", repairers.iter().map(|r| (*r).to_string()));
    let panel = Panel::new("", x, y).with(heat(cells, most));
    Ok(Some(Figure {
        name: format!("repairers_of_{}_{ablation}", head.name()),
        theme: THEME,
        caption: format!(
            "Which components change their direct effect when {} is ablated, on {} of its {} top tokens. A cell that is \
             empty is not among the ten largest changes of that token.",
            head.name(),
            shown.len(),
            tokens.len()
        ),
        sql: vec![sql],
        chart: Chart {
            title: format!("What repairs {}, token by token", head.name()),
            settings: study.settings.line(&format!("{ablation} ablation, top tokens of {}", head.name())),
            legend: vec![heat_key("change of direct effect [logits]", most)],
            height: (16.0 * repairers.len() as f64).max(160.0),
            panels: vec![panel],
            columns: 1,
        },
    }))
}

/// Layer by layer: what the heads and the MLP of a later layer do when a head of an earlier one is ablated.
fn graph(study: &Study, ablation: &str) -> Result<Option<Figure>> {
    let sql = ask!("repair_graph", ablation = ablation);
    let rows = study.rows(&sql)?;
    if rows.is_empty() {
        return Ok(None);
    }
    let layers = [rows.numbers("layer")?, rows.numbers("repairer_layer")?].concat();
    let change = rows.numbers("change")?;
    let most = change.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    let mut panels = Vec::new();
    for (repairer, title) in [("head", "by heads, summed over the layer"), ("mlp", "by the layer's MLP")] {
        let rows = rows.filtered("repairer", repairer)?;
        let (x, y, change) = (rows.numbers("layer")?, rows.numbers("repairer_layer")?, rows.numbers("change")?);
        let cells = (0..x.len())
            .map(|i| (x[i], y[i], change[i], format!("layer {} for {}: {:+.3} logits", y[i], x[i], change[i])));
        panels.push(
            Panel::new(
                title,
                Axis::whole("layer of the ablated head", &layers),
                Axis::whole("layer that repairs", &layers),
            )
            .with(heat(cells, most)),
        );
    }
    Ok(Some(Figure {
        name: format!("repair_graph_{ablation}"),
        theme: THEME,
        caption:
            "Change of the direct effect of a layer's heads and MLP when one head of an earlier layer (or, for an \
                  MLP, of the same) is ablated, mean over the ablated heads of a layer."
                .into(),
        sql: vec![sql],
        chart: Chart {
            title: "Which layers repair which".into(),
            settings: study.settings.line(&format!("{ablation} ablation, top tokens")),
            legend: vec![heat_key("change of direct effect [logits]", most)],
            panels,
            columns: 2,
            height: 320.0,
        },
    }))
}

/// The strongest heads that the graph knows.
pub fn ablated_heads(study: &Study, ablation: &str, count: usize) -> Result<Vec<Head>> {
    let rows = study.rows(&ask!("ablated_heads", ablation = ablation))?;
    let heads = rows.points("layer", "head")?.into_iter().map(|(layer, head)| Head { layer, head });
    Ok(heads.take(count).collect())
}
