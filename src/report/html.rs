//! The report as one HTML file. It opens from disk without a network, light or dark, on a wide screen or a phone.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::Rows;
use super::chart::{Theme, variables};
use super::escape::escape;
use super::figures::Figure;
use super::query::ask;
use super::settings::grouped;
use selfrepair_query::analyze::Tables;
use selfrepair_store::pieces;

/// A page under construction: sections are added in the order in which they are read.
pub struct Page {
    title: String,
    /// What stands between the heading and the first section.
    introduction: String,
    /// (id, heading) of the sections, for the table of contents.
    sections: Vec<(String, String)>,
    body: String,
    /// Where the figures' files lie, seen from the page.
    figures_at: &'static str,
}

/// A table of a page.
pub struct Listing {
    /// Names of the columns; those of text are aligned to the left.
    pub columns: Vec<(String, bool)>,
    pub rows: Vec<Vec<String>>,
}

impl Page {
    pub fn new(title: impl Into<String>, introduction: String, figures_at: &'static str) -> Self {
        Self { title: title.into(), introduction, sections: Vec::new(), body: String::new(), figures_at }
    }

    pub fn section(&mut self, heading: &str) {
        let id = format!("section-{}", self.sections.len() + 1);
        self.body.push_str(&format!("<h2 id=\"{id}\">{}</h2>\n", escape(heading)));
        self.sections.push((id, heading.to_string()));
    }

    /// Adds the figures, each theme as a section.
    pub fn figures(&mut self, figures: &[Figure]) -> Result<()> {
        let mut theme = "";
        for figure in figures {
            if figure.theme != theme {
                theme = figure.theme;
                self.section(theme);
            }
            self.figure(figure)?;
        }
        Ok(())
    }

    fn figure(&mut self, figure: &Figure) -> Result<()> {
        let mut sources = Vec::new();
        for asked in &figure.sql {
            for table in Tables::references(&asked.query.text)? {
                if !sources.contains(&table) {
                    sources.push(table);
                }
            }
        }
        let names: Vec<String> = sources.iter().map(|t| format!("<code>{}</code>", escape(t))).collect();
        let mut queries = String::new();
        for asked in &figure.sql {
            queries.push_str(&format!("<pre><code>{}</code></pre>", escape(&asked.shown()?)));
        }
        let (name, at) = (&figure.name, self.figures_at);
        write!(
            self.body,
            "<figure id=\"{name}\">\n<div class=\"drawing\" tabindex=\"0\">{}</div>\n<figcaption>{}</figcaption>\n\
             <details><summary>From {} · the SQL</summary>{queries}</details>\n\
             <details><summary>Files</summary><a href=\"{at}/{name}.svg\">SVG</a> · <a href=\"{at}/{name}.png\">PNG</a></details>\n\
             </figure>\n",
            figure.chart.svg(Theme::Page),
            escape(&figure.caption),
            names.join(", "),
        )?;
        Ok(())
    }

    /// Adds a table with a sentence about it.
    pub fn table(&mut self, about: &str, listing: &Listing) {
        self.body.push_str(&format!("<p class=\"soft\">{}</p>\n{}", escape(about), listing.html()));
    }

    pub fn html(self) -> String {
        let contents: String =
            self.sections.iter().map(|(id, name)| format!("<a href=\"#{id}\">{}</a>", escape(name))).collect();
        let title = escape(&self.title);
        let style = format!(
            "\n:root {{ color-scheme: light dark; --paper:#ffffff; --card:#f4f4f6; {} }}\n\
             @media (prefers-color-scheme: dark) {{ :root {{ --paper:#17181a; --card:#222327; {} }} }}\n{}",
            variables(false),
            variables(true),
            include_str!("page.css"),
        );
        let script = concat!("\n", include_str!("page.js"));
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"{}\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
             <style>{style}</style>\n\
             <h1>{title}</h1>\n{}<nav>{contents}</nav>\n{}<script>{script}</script>\n</html>\n",
            policy(&style, script),
            self.introduction,
            self.body,
        )
    }
}

/// What the page may load and run: its own style and its own script, known by their hashes, and nothing else.
fn policy(style: &str, script: &str) -> String {
    let hash = |text: &str| STANDARD.encode(Sha256::digest(text));
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'",
        hash(style),
        hash(script)
    )
}

/// Bytes of a cell that may stand in one line.
const LONG: usize = 48;

impl Listing {
    fn html(&self) -> String {
        let class = |i: usize| if self.columns[i].1 { " class=\"text\"" } else { "" };
        let mut out = String::from("<div class=\"scroll\" tabindex=\"0\"><table class=\"sortable\">\n<thead><tr>");
        for (i, (name, _)) in self.columns.iter().enumerate() {
            out.push_str(&format!("<th{}><button type=\"button\">{}</button></th>", class(i), escape(name)));
        }
        out.push_str("</tr></thead>\n<tbody>\n");
        for row in &self.rows {
            out.push_str("<tr>");
            for (i, cell) in row.iter().enumerate() {
                // What is long is broken into lines.
                let class = if cell.len() > LONG { " class=\"text long\"" } else { class(i) };
                out.push_str(&format!("<td{class}>{}</td>", escape(cell)));
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody></table></div>\n");
        out
    }

    /// A number of a cell, which is empty where there is none.
    pub fn shown(value: f64, digits: usize) -> String {
        if value.is_finite() { format!("{value:.digits$}") } else { String::new() }
    }

    /// The rows of a query: text columns as they are, numbers to three digits, whole ones without a point.
    pub fn of(rows: &Rows, texts: &[&str], whole: &[&str], numbers: &[&str]) -> Result<Self> {
        let named = |names: &[&str], text: bool| names.iter().map(|n| (n.replace('_', " "), text)).collect::<Vec<_>>();
        let columns = [named(texts, true), named(whole, false), named(numbers, false)].concat();
        let mut cells: Vec<Vec<String>> = Vec::new();
        for name in texts {
            cells.push(rows.texts(name)?);
        }
        for (names, digits) in [(whole, 0), (numbers, 3)] {
            for name in names {
                cells.push(rows.numbers(name)?.into_iter().map(|v| Self::shown(v, digits)).collect());
            }
        }
        let rows = (0..rows.len()).map(|i| cells.iter().map(|c| c[i].clone()).collect()).collect();
        Ok(Self { columns, rows })
    }
}

/// The page of one run.
pub fn run_page(tables: &Tables, figures: &[Figure], out: &Path) -> Result<String> {
    let model = Rows::ask(tables, &ask!("model"))?;
    let name = model.texts("name")?.concat();
    let mut page = Page::new(format!("Self-repair in {name}"), introduction(tables, &model, out)?, "../figures");
    page.figures(figures)?;
    page.section("All heads");
    heads(&mut page, tables)?;
    if tables.has("repair_graph")? {
        edges(&mut page, tables)?;
    }
    notable_tokens(&mut page, tables)?;
    Ok(page.html())
}

fn introduction(tables: &Tables, model: &Rows, out: &Path) -> Result<String> {
    let counts = Rows::ask(tables, &ask!("counts"))?;
    let top = Rows::ask(tables, &ask!("top_token_count"))?;
    let config = match out.join("report/config.toml").exists() {
        true => "<p class=\"soft\">What was asked for last: <a href=\"config.toml\">config.toml</a>.</p>\n",
        false => "",
    };
    let measured = match pieces::coverage(out)?.lines() {
        none if none.is_empty() => String::new(),
        lines => format!("<p class=\"soft\">Measured: {}.</p>\n", escape(&lines.join("; "))),
    };
    Ok(format!(
        "<p class=\"soft\">{} layers of {} heads, width {}; {} tokens of {} prompts; {} (sha256 {}…)</p>\n\
         <p>When an attention head is ablated, later parts of the model change and make up for some of the loss. \
         <em>Direct effect</em> is what the head itself writes towards the correct token's logit; <em>self-repair</em> \
         is how much less that logit falls, when the head is ablated, than by the direct effect that was removed. A \
         head's <em>top tokens</em> are the {} on which its direct effect is highest.</p>\n{measured}{config}",
        model.number("layers")?,
        model.number("heads")?,
        model.number("d_model")?,
        grouped(counts.number("tokens")?),
        grouped(counts.number("prompts")?),
        escape(&model.texts("source")?.concat()),
        escape(&model.texts("sha256")?.concat().chars().take(12).collect::<String>()),
        grouped(top.number("tokens")?),
    ))
}

/// Rows of a table of the page; more would weigh on it.
const MOST_ROWS: usize = 2000;

/// Every ablated component, strongest repair first.
fn heads(page: &mut Page, tables: &Tables) -> Result<()> {
    let rows = Rows::ask(tables, &ask!("page_components"))?;
    let numbers = [
        "direct_effect",
        "logit_change",
        "self_repair",
        "self_repair_error",
        "repair_attention",
        "repair_mlp",
        "repair_norm",
        "repair_write_norm",
        "fraction_clipped",
        "fraction_of_means",
    ];
    let mut listing = Listing::of(&rows, &["name", "ablation", "hold"], &[], &numbers)?;
    let left_out = match rows.len() > MOST_ROWS {
        true => format!(
            " These are the {} of {} rows with most self-repair; the table has them all.",
            grouped(MOST_ROWS as f64),
            grouped(rows.len() as f64)
        ),
        false => String::new(),
    };
    listing.rows.truncate(MOST_ROWS);
    let about =
        format!("Means over top tokens, in logits; table head_summary. Press a column's name to sort by it.{left_out}");
    page.table(&about, &listing);
    Ok(())
}

/// Who repairs whom.
fn edges(page: &mut Page, tables: &Tables) -> Result<()> {
    let rows = Rows::ask(tables, &ask!("page_repairers"))?;
    if rows.is_empty() {
        return Ok(());
    }
    page.section("Strongest repairers");
    let texts = ["name", "repairer_name", "ablation", "hold"];
    let listing = Listing::of(&rows, &texts, &["tokens"], &["mean_change", "standard_error"])?;
    let about = "Change of the repairer's direct effect on the ablated component's top tokens, in logits: the 200 largest \
                 of table repair_graph.";
    page.table(about, &listing);
    Ok(())
}

/// The text around the tokens with most repair, over-repair and negative repair.
fn notable_tokens(page: &mut Page, tables: &Tables) -> Result<()> {
    let first = Rows::ask(tables, &ask!("page_notable_ablations"))?.texts("ablation")?;
    let Some(ablation) = first.first() else { return Ok(()) };
    let rows = Rows::ask(tables, &ask!("page_notable_tokens", ablation = ablation.as_str()))?;
    page.section("Notable tokens");
    let numbers = ["direct_effect", "logit_change", "self_repair"];
    let listing = Listing::of(&rows, &["sort", "name", "text", "next_text"], &["prompt", "position"], &numbers)?;
    let about = format!(
        "Heads' top tokens on which most is repaired, on which the logit rises most although direct effect was \
        removed (over-repaired), and on which self-repair is lowest (negative): the text around the marked token, \
         whose logit is measured. {ablation} ablation, in logits; table notable_tokens."
    );
    page.table(&about, &listing);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{report, test_run};
    use super::*;

    #[test]
    fn a_page_stands_alone_and_says_where_its_numbers_are_from() {
        let run = test_run("tiny", &["zero"]);
        report(run.path()).unwrap();
        let page = std::fs::read_to_string(run.path().join("report/index.html")).unwrap();
        for outside in ["src=", "<link", "@import", "url(", "https://"] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert_eq!(page.matches("http://").count(), page.matches("xmlns=\"http://www.w3.org/2000/svg\"").count());
        assert!(page.contains("prefers-color-scheme: dark") && page.contains("width=device-width"));
        assert!(page.contains("From <code>head_summary</code>, <code>layer_summary</code>"), "the figure's tables");
        assert!(page.contains("<pre><code>select layer, head, self_repair, self_repair_error from head_summary"));
        // Every figure is there as files, where the page says.
        let mut figures = 0;
        for link in page.split("href=\"../figures/").skip(1) {
            let name = link.split('"').next().unwrap();
            assert!(run.path().join("figures").join(name).is_file(), "{name}");
            figures += 1;
        }
        assert_eq!(figures, 2 * page.matches("<figure ").count());
        // Colours of figures follow the page's preference.
        let figure = &page[page.find("<figure ").unwrap()..];
        assert!(figure.contains("var(--c0)") && !figure.contains("#0072b2"));
        assert!(page.contains("<th class=\"text\"><button type=\"button\">name</button></th>"));
        assert!(page.contains("<td class=\"text\">L0H0</td>") && page.contains("<td>0.750</td>"));
        // The strongest repair, in its text: the logit of the marked token is measured.
        assert!(page.contains("<td class=\"text\">c«d»e</td><td class=\"text\">d</td>"), "{page}");
    }

    #[test]
    fn rows_that_are_left_out_are_told() {
        let about = |rows: usize| {
            let dir = tempfile::tempdir().unwrap();
            let columns = "ablation hold component layer head subset direct_effect logit_change self_repair \
                           self_repair_error repair_attention repair_mlp repair_norm fraction_clipped fraction_of_means";
            let row = |i: usize| format!("zero none head {} {} top 1 0 0 0 0 0 0 0 0", i / 100, i % 100);
            let rows: Vec<String> = (0..rows).map(row).collect();
            selfrepair_store::test_tables::table(dir.path(), "head_summary", columns, &rows);
            let mut page = Page::new("", String::new(), "figures");
            heads(&mut page, &Tables::open(dir.path()).unwrap()).unwrap();
            let html = page.html();
            (html.matches("<tr><td").count(), html.contains("These are the 2,000 of 2,001 rows with most self-repair"))
        };
        assert_eq!(about(2000), (2000, false));
        assert_eq!(about(2001), (2000, true));
    }

    #[test]
    fn what_a_run_is_called_cannot_break_the_page() {
        let mut page = Page::new("<b>", String::new(), "figures");
        page.section("a & b");
        let cells = vec![vec!["<i>".to_string(), Listing::shown(f64::NAN, 3)]];
        page.table("x < y", &Listing { columns: vec![("<u>".into(), true), ("n".into(), false)], rows: cells });
        let html = page.html();
        for escaped in ["<h1>&lt;b&gt;</h1>", ">a &amp; b<", ">&lt;i&gt;<", ">x &lt; y<", ">&lt;u&gt;<", "<td></td>"] {
            assert!(html.contains(escaped), "{escaped}");
        }
    }
}
