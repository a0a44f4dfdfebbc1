//! Iterative inference. Do later heads react to a skipped block as to an ablated head? To their own output as to
//! another head's? To a head's output that is added again?

use anyhow::Result;

use super::graph::ablated_heads;
use super::{Figure, LayerColours, Study, ask, head_name, size_at};
use crate::Rows;
use crate::chart::{Axis, Chart, Colour, Key, Mark, ORANGE, Panel, common, heat, heat_key};

const THEME: &str = "Iterative inference";

pub fn figures(study: &Study) -> Result<Vec<Figure>> {
    let mut out = Vec::new();
    if study.has(&["repair_graph"])?
        && let Some(ablation) = study.main_ablation()
    {
        out.extend(skipped_blocks(study, ablation)?);
    }
    if study.has(&["self_additions"])? {
        out.extend(additions(study)?);
    }
    if study.has(&["stream_additions"])? {
        out.extend(stream_additions(study)?);
    }
    if study.has(&["head_similarity"])? {
        out.push(similarity(study)?);
    }
    Ok(out)
}

/// Change of every downstream head: block l skipped, against a head of block l ablated.
fn skipped_blocks(study: &Study, ablation: &str) -> Result<Option<Figure>> {
    let (mut panels, mut queries, mut layers) = (Vec::new(), Vec::new(), Vec::new());
    let mut found = Vec::new();
    for head in ablated_heads(study, ablation, 4)? {
        // Blocks have no top tokens of their own kind in every run: all tokens serve for both then.
        let sql = head.ask(ask!("skipped_blocks", ablation = ablation));
        let rows = study.rows(&sql)?;
        let top = rows.filtered("subset", "top")?;
        let (rows, subset) = if top.is_empty() { (rows, "all tokens") } else { (top, "top tokens") };
        if rows.is_empty() {
            continue;
        }
        layers.extend(rows.numbers("repairer_layer")?);
        found.push((head, rows, subset));
        queries.push(sql);
    }
    let colours = LayerColours::of(&layers);
    for (head, rows, subset) in &found {
        let (x, y) = (rows.numbers("skipped")?, rows.numbers("ablated")?);
        let range = common(&x, &y);
        let label = format!("change when {} is ablated [logits]", head.name());
        panels.push(
            Panel::new(
                format!("{}, {subset}", head.name()),
                Axis::numbers(format!("change when block {} is skipped [logits]", head.layer), range),
                Axis::numbers(label, range),
            )
            .zero()
            .with(Mark::thin((0.0, range.0), (0.0, range.1), Colour::Soft))
            .through_origin(1.0, ORANGE)
            .with(colours.points(
                &rows.numbers("repairer_layer")?,
                &rows.numbers("repairer_head")?,
                &x,
                &y,
            )),
        );
    }
    if panels.is_empty() {
        return Ok(None);
    }
    Ok(Some(Figure {
        name: format!("skipped_blocks_{ablation}"),
        theme: THEME,
        caption: "Each point is a head of a later layer and how its direct effect changes: when the whole block is \
                  skipped (zero ablation of the block), and when one head of that block is ablated. Near the \
                  line, the response is not specific to the ablated head."
            .into(),
        sql: queries,
        chart: Chart {
            title: "Downstream heads: a block skipped against a head ablated".into(),
            settings: study.settings.line(&format!("{ablation} ablation of heads")),
            legend: vec![Key::Dashed(ORANGE, "y = x: the same change".into()), colours.key()],
            panels,
            columns: 2,
            height: 280.0,
        },
    }))
}

/// A head's reaction to its own output in its input, per unit added, beside the controls.
fn additions(study: &Study) -> Result<Option<Figure>> {
    let sql = ask!("self_additions");
    let rows = study.rows(&sql)?;
    let slopes = rows.numbers("slope")?;
    let most = slopes.iter().filter(|v| v.is_finite()).fold(0.0, |m: f64, v| m.max(v.abs()));
    let layers = rows.numbers("layer")?;
    let mut panels = Vec::new();
    let kinds = [
        ("own", "its own output added"),
        ("random_head", "another head's output added"),
        ("random_direction", "a random direction added"),
    ];
    for (added, title) in kinds {
        let rows = rows.filtered("added", added)?;
        if rows.is_empty() {
            continue;
        }
        let (layer, head, slope) = (rows.numbers("layer")?, rows.numbers("head")?, rows.numbers("slope")?);
        let cells = (0..layer.len())
            .map(|i| (layer[i], head[i], slope[i], format!("L{}H{}: {:+.3} logits", layer[i], head[i], slope[i])));
        panels.push(
            Panel::new(title, Axis::whole("layer", &layers), Axis::whole("head", &rows.numbers("head")?))
                .with(heat(cells, most)),
        );
    }
    if panels.is_empty() {
        return Ok(None);
    }
    Ok(Some(Figure {
        name: "self_additions".into(),
        theme: THEME,
        caption: "Change of a head's direct effect per multiple of its own output added to its input stream (slope \
            over all multiples, through zero). Positive: it reinforces itself; negative: it represses itself. The \
            controls have the same norm."
            .into(),
        sql: vec![sql],
        chart: Chart {
            title: "Self-reinforcing and self-repressing heads".into(),
            settings: study.settings.line(""),
            legend: vec![heat_key("change of direct effect per multiple added [logits]", most)],
            columns: panels.len(),
            panels,
            height: 240.0,
        },
    }))
}

/// Heads of the figure about additions before every block: those with most self-repair.
const SOURCES: usize = 12;

/// What the rest of the model makes of a head's output that is added before each block, as a share of what was added.
fn stream_additions(study: &Study) -> Result<Option<Figure>> {
    let sql = vec![ask!("stream_additions_by_layer"), ask!("stream_additions_by_head")];
    let Some(ablation) = study.main_ablation() else { return Ok(None) };
    let mut strongest = study.strongest(ablation, SOURCES)?;
    strongest.sort_by(|a, b| a.layer.total_cmp(&b.layer).then(a.head.total_cmp(&b.head)));
    let (of_layers, of_heads) = (study.rows(&sql[0])?, study.rows(&sql[1])?);
    let layer = of_layers.numbers("layer")?;
    let layers = Source::of(&of_layers, |i| (layer[i], format!("layer {}", layer[i])))?;
    let (layer, head) = (of_heads.numbers("layer")?, of_heads.numbers("head")?);
    let mut heads = Source::of(&of_heads, |i| {
        let row = strongest.iter().position(|s| (s.layer, s.head) == (layer[i], head[i]));
        (row.map_or(f64::NAN, |row| row as f64), head_name(layer[i], head[i]))
    })?;
    heads.retain(|source| source.row.is_finite());
    // Early blocks answer many times what was added: the colour is full at the 90th percentile.
    let most = size_at(0.9, layers.iter().chain(&heads).map(|s| s.share));

    let of_layers = Axis::whole("the heads' layer", &layers.iter().map(|s| s.row).collect::<Vec<_>>());
    let mut panels = vec![addition_panel("all ablated heads of a layer", of_layers, &layers, most)];
    if !heads.is_empty() {
        let names = Axis::names("", strongest.iter().map(|s| s.name()));
        panels.push(addition_panel("heads with most self-repair", names, &heads, most));
    }
    Ok(Some(Figure {
        name: "stream_additions".into(),
        theme: THEME,
        caption: "A head's clean output is added, 1, 3, … times, to the stream before a block, at one of the head's top \
                  tokens at a time. Colour: the change of the logit beyond the direct effect of what was added, as a share \
                  of it (slope through zero over all multiples). Below zero the rest of the model works against what it \
                  reads already; at −100 % it undoes all of it, below that more. Left of the line the head itself reads the \
                  addition too."
            .into(),
        sql,
        chart: Chart {
            title: "A head's output added before every block".into(),
            settings: study.settings.line("top tokens of the first prompts"),
            legend: vec![
                heat_key("response [% of what was added]", most),
                Key::Line(Colour::Ink, "the head's own block".into()),
            ],
            columns: panels.len(),
            panels,
            height: 320.0,
        },
    }))
}

/// A cell of the figure: a head, or the heads of a layer, and a block before which their outputs are added.
struct Source {
    layer: f64,
    /// Where it is drawn.
    row: f64,
    name: String,
    added_at: f64,
    share: f64,
}

impl Source {
    /// `place` gives where the n-th is drawn, and its name.
    fn of(rows: &Rows, place: impl Fn(usize) -> (f64, String)) -> Result<Vec<Self>> {
        let (layer, added_at, share) = (rows.numbers("layer")?, rows.numbers("added_at")?, rows.numbers("share")?);
        let source = |i: usize| {
            let (row, name) = place(i);
            Self { layer: layer[i], row, name, added_at: added_at[i], share: share[i] }
        };
        Ok((0..layer.len()).map(source).collect())
    }
}

fn addition_panel(title: &str, y: Axis, sources: &[Source], most: f64) -> Panel {
    let said = |s: &Source| format!("{} before block {}: {:+.0} % of what was added", s.name, s.added_at, s.share);
    let blocks: Vec<f64> = sources.iter().map(|s| s.added_at).collect();
    let cells = sources.iter().map(|s| (s.added_at, s.row, s.share, said(s)));
    // Left of these the head itself runs after the addition, and reads it.
    let own = sources.iter().map(|s| ((s.layer + 0.5, s.row - 0.5), (s.layer + 0.5, s.row + 0.5)));
    let mut own: Vec<_> = own.collect();
    own.dedup();
    Panel::new(title, Axis::whole("block before which it is added", &blocks), y)
        .with(heat(cells, most))
        .with(Mark::Segments { from_to: own, colour: Colour::Ink, width: 1.5 })
}

/// Mean absolute cosine between the outputs of two layers' heads.
fn similarity(study: &Study) -> Result<Figure> {
    let sql = ask!("head_similarity");
    let rows = study.rows(&sql)?;
    let (x, y) = (rows.numbers("layer")?, rows.numbers("other_layer")?);
    let both = [rows.numbers("cosine")?, rows.numbers("cosine_without_token")?];
    let most = both.iter().flatten().filter(|v| v.is_finite()).fold(0.0, |m: f64, v| m.max(v.abs()));
    let titles = ["as written", "without the token's direction"];
    let layers = [x.clone(), y.clone()].concat();
    let panels = both.iter().zip(titles).map(|(values, title)| {
        let cells =
            (0..x.len()).map(|i| (x[i], y[i], values[i], format!("layers {} and {}: {:.3}", x[i], y[i], values[i])));
        Panel::new(title, Axis::whole("layer", &layers), Axis::whole("other layer", &layers)).with(heat(cells, most))
    });
    Ok(Figure {
        name: "head_similarity".into(),
        theme: THEME,
        caption:
            "How alike two heads write: the absolute value of the mean cosine between their outputs at the same token, in \
                  the mean over all pairs of heads of two layers; then without the parts along the \
                  correct token's direction."
                .into(),
        sql: vec![sql],
        chart: Chart {
            title: "How alike heads of two layers write".into(),
            settings: study.settings.line(""),
            legend: vec![heat_key("mean |cosine|", most)],
            panels: panels.collect(),
            columns: 2,
            height: 300.0,
        },
    })
}
