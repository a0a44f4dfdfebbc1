//! One HTML file that opens from disk without a network.

use std::fmt::Write;

use anyhow::Result;

use super::Rows;
use super::figures::Figure;
use crate::analyze::Tables;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1d1d1f; --paper: #ffffff; --soft: #6b6b70; --rule: #d9d9de; --card: #f6f6f8 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ea; --paper: #17181a; --soft: #a2a2a8; --rule: #3a3b3f; --card: #202124 }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 60rem; padding: 1.5rem 1rem 4rem }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
.soft { color: var(--soft) }
figure { margin: 1.6rem 0; background: #fff; border: 1px solid var(--rule); border-radius: 8px; padding: .6rem;
  overflow-x: auto }
figure svg { width: 100%; min-width: 40rem; height: auto; display: block }
figcaption { color: #333; padding: .2rem .6rem .4rem } figcaption code { color: #555; font-size: .8rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem }
th, td { text-align: right; padding: .25rem .7rem; border-bottom: 1px solid var(--rule); white-space: nowrap }
th:first-child, td:first-child { text-align: left }
thead th { background: var(--card) }
";

/// The whole page.
pub fn page(tables: &Tables, figures: &[Figure]) -> Result<String> {
    let model = Rows::of(tables, "select name, source, layers, heads, d_model, sha256 from model")?;
    let counts = Rows::of(tables, "select count(distinct prompt) as prompts, count(*) as tokens from clean")?;
    let top = Rows::of(tables, "select max(tokens) as tokens from head_summary where subset = 'top'")?;
    let name = escape(&model.texts("name")?.concat());
    let mut page = String::new();
    write!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Self-repair in {name}</title>\n<style>{STYLE}</style>\n\
         <h1>Self-repair in {name}</h1>\n\
         <p class=\"soft\">{} layers of {} heads, width {}; {} tokens of {} prompts; {} (sha256 {}…)</p>\n\
         <p>When an attention head is ablated, later parts of the model change and make up for some of the loss. \
         <em>Direct effect</em> is what the head itself writes towards the correct token's logit; <em>self-repair</em> \
         is how much less that logit falls, when the head is ablated, than by the direct effect that was taken away. A \
         head's <em>top tokens</em> are the {} on which its direct effect is highest.</p>\n\
         <p class=\"soft\">What was run: <a href=\"config.toml\">config.toml</a>.</p>\n",
        model.number("layers")?,
        model.number("heads")?,
        model.number("d_model")?,
        counts.number("tokens")?,
        counts.number("prompts")?,
        escape(&model.texts("source")?.concat()),
        &model.texts("sha256")?.concat().get(..12).unwrap_or_default(),
        top.number("tokens")?,
    )?;
    for figure in figures {
        // An inline drawing needs no declaration of its own.
        let svg = figure.svg.find("<svg").map_or(figure.svg.as_str(), |start| &figure.svg[start..]);
        write!(
            page,
            "<figure id=\"{}\">\n{}\n<figcaption>{}<br><code>{}</code></figcaption>\n</figure>\n",
            figure.name,
            svg.replacen("<svg ", &format!("<svg role=\"img\" viewBox=\"{VIEW}\" "), 1),
            escape(&figure.caption),
            escape(&figure.sql)
        )?;
    }
    table(&mut page, tables)?;
    page.push_str("</html>\n");
    Ok(page)
}

/// The size of every figure, so that an inline drawing scales with the page.
const VIEW: &str = "0 0 860 460";

/// The heads with most self-repair, for each ablation.
fn table(page: &mut String, tables: &Tables) -> Result<()> {
    let sql = "select ablation, layer, head, direct_effect, logit_change, self_repair, self_repair_error,
            repair_attention, repair_mlp, repair_norm, fraction_clipped
        from (
            select *, row_number() over (partition by ablation order by self_repair desc) as place
            from head_summary where subset = 'top'
        )
        where place <= 20 order by ablation, place";
    let rows = Rows::of(tables, sql)?;
    let columns = [
        "direct_effect",
        "logit_change",
        "self_repair",
        "self_repair_error",
        "repair_attention",
        "repair_mlp",
        "repair_norm",
        "fraction_clipped",
    ];
    write!(
        page,
        "<h2>The heads with most self-repair</h2>\n<p class=\"soft\">Top tokens, in logits; table \
         <code>head_summary</code>.</p>\n<div class=\"scroll\"><table>\n<thead><tr><th>head</th><th>ablation</th>"
    )?;
    for column in columns {
        write!(page, "<th>{}</th>", column.replace('_', " "))?;
    }
    page.push_str("</tr></thead>\n<tbody>\n");
    let values: Vec<Vec<f64>> = columns.iter().map(|c| rows.numbers(c)).collect::<Result<_>>()?;
    let (ablation, layer, head) = (rows.texts("ablation")?, rows.numbers("layer")?, rows.numbers("head")?);
    for i in 0..ablation.len() {
        write!(page, "<tr><td>L{}H{}</td><td>{}</td>", layer[i], head[i], ablation[i])?;
        for column in &values {
            write!(page, "<td>{:.3}</td>", column[i])?;
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody></table></div>\n");
    Ok(())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
