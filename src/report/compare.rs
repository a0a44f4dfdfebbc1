//! Compares several runs: models, ablations or texts.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::chart::{Axis, BLUE, Cell, Chart, Colour, GREEN, Key, Mark, Panel, Point, RED, with_zero};
use super::escape::escape;
use super::figures::{Figure, causes_of, stacked, with_file_names};
use super::html::{Listing, Page};
use super::query::{Asked, ask};
use super::settings::Settings;
use super::{Rows, files, folder, report};
use selfrepair_core::plain::shell_word;
use selfrepair_query::analyze::Tables;
use selfrepair_query::older;
use selfrepair_store::locks::ReportLock;
use selfrepair_store::run_folder;
use selfrepair_store::run_folder::is_run;

const THEME: &str = "Runs compared";

/// Rewrites the report of one run, or writes a page that compares several into `to`.
///
/// # Errors
/// If a folder has no finished run's tables, or `to` holds anything that is not a comparison's.
pub fn compare(runs: &[PathBuf], to: &Path) -> Result<String> {
    if let [one] = runs {
        run_folder::check(one)?;
        // A run may be writing its report at the same time.
        let _lock = one.join("tables").is_dir().then(|| ReportLock::shared(one)).transpose()?;
        return report(one);
    }
    ensure!(!is_run(to), "--to {} is the folder of a run; name another folder for the comparison", to.display());
    folder::check(to)?;
    let opened: Vec<Run> = runs.iter().map(|out| Run::open(out)).collect::<Result<_>>()?;
    let series = series(&opened)?;
    let figures = vec![by_depth(&series)?, causes(&series)?, shares(&series)?, outcomes(&series)?];
    let figures = with_file_names(figures);
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    let names = figures.iter().flat_map(files::names).map(|name| format!("figures/{name}"));
    folder::record(to, names.chain(["index.html".to_string()]))?;
    files::write(&figures, &to.join("figures"))?;
    let mut page = Page::new("Self-repair, several runs compared", introduction(&series), "figures");
    // Every run has the tables that the queries read, so the first can tell their names.
    page.figures(&figures)?;
    page.section("Summary");
    page.table(
        "Means over all ablated heads; logits, or fractions of the direct effect. Press a column's name to sort by it.",
        &summary(&series)?,
    );
    let path = to.join("index.html");
    files::put(&path, page.html().as_bytes())?;
    Ok(format!("{} runs compared in {}", runs.len(), path.display()))
}

struct Run {
    folder: PathBuf,
    tables: Tables,
    settings: Settings,
    ablations: Vec<String>,
    /// The tables in the present schema, if the folder has an older one.
    _older: Option<TempDir>,
}

impl Run {
    fn open(out: &Path) -> Result<Self> {
        let older = older::as_present(out)?;
        let present = older.as_ref().map_or(out, |folder| folder.path());
        let tables = Tables::open_in_order(present)?;
        for table in ["model", "clean", "head_summary", "layer_summary", "repair_outcomes"] {
            ensure!(
                tables.has(table)?,
                "{} has no table {table}; run `pipeline run all --out {}` to the end first",
                out.display(),
                shell_word(&out.display().to_string())
            );
        }
        let ablations = Rows::ask(&tables, &ask!("ablations"))?.texts("ablation")?;
        ensure!(!ablations.is_empty(), "{} ablated no heads; only runs that did can be compared", out.display());
        let settings = Settings::read(&tables, present)?;
        Ok(Self { folder: out.to_path_buf(), settings, tables, ablations, _older: older })
    }
}

/// One line of the figures: a run's heads under one ablation.
struct Series<'a> {
    run: &'a Run,
    ablation: &'a str,
    label: String,
    colour: Colour,
}

/// Every run and ablation, named by what tells them apart.
fn series(runs: &[Run]) -> Result<Vec<Series<'_>>> {
    let mut out = Vec::new();
    for run in runs {
        for ablation in &run.ablations {
            let colour = Colour::Hue(out.len());
            out.push(Series { run, ablation, label: run.settings.model.clone(), colour });
        }
    }
    let ablations: HashSet<&str> = out.iter().map(|s| s.ablation).collect();
    if ablations.len() > 1 {
        out.iter_mut().for_each(|s| s.label = format!("{}, {}", s.label, s.ablation));
    }
    let unique = |out: &[Series]| out.iter().map(|s| s.label.as_str()).collect::<HashSet<_>>().len() == out.len();
    if !unique(&out) {
        for s in &mut out {
            let corpus = s.run.settings.corpus.clone().unwrap_or_else(|| s.run.folder.display().to_string());
            s.label = format!("{}, {corpus}", s.label);
        }
    }
    if !unique(&out) {
        for s in &mut out {
            s.label = format!("{} ({})", s.label, s.run.folder.display());
        }
    }
    Ok(out)
}

impl Series<'_> {
    /// The rows of a query about this series, whose parameter is `$ablation`.
    fn rows(&self, asked: Asked) -> Result<Rows> {
        Rows::ask(&self.run.tables, &asked.with("ablation", self.ablation))
            .with_context(|| format!("in {}", self.run.folder.display()))
    }

    fn key(&self) -> Key {
        Key::Line(self.colour, self.label.clone())
    }
}

fn introduction(series: &[Series]) -> String {
    let mut lines: Vec<String> = Vec::new();
    for s in series {
        let line = s.run.settings.line(&format!("{} layers of {} heads", s.run.settings.layers, s.run.settings.heads));
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    let items: String = lines.iter().map(|l| format!("<li>{}</li>", escape(l))).collect();
    format!("<ul class=\"soft\">{items}</ul>\n")
}

fn settings(series: &[Series]) -> String {
    let mut ablations: Vec<&str> = series.iter().map(|s| s.ablation).collect();
    ablations.sort_unstable();
    ablations.dedup();
    let mut corpora: Vec<&str> = series.iter().filter_map(|s| s.run.settings.corpus.as_deref()).collect();
    corpora.sort_unstable();
    corpora.dedup();
    let tokens: Vec<f64> = series.iter().map(|s| s.run.settings.tokens).collect();
    let (low, high) = super::chart::extent(tokens).unwrap_or((0.0, 0.0));
    let grouped = super::settings::grouped;
    let tokens = if low < high { format!("{} to {}", grouped(low), grouped(high)) } else { grouped(low) };
    let corpora = if corpora.is_empty() { String::new() } else { format!(" of {}", corpora.join(", ")) };
    format!("{} ablation · {tokens} tokens{corpora}", ablations.join(", "))
}

/// Self-repair of top tokens against relative depth: one line per run through its layers' means, one dot per head.
fn by_depth(series: &[Series]) -> Result<Figure> {
    let panels = [
        ("self_repair", "self-repair, mean of top tokens [logits]", (f64::MIN, f64::MAX)),
        // Where direct effects nearly cancel, the fraction says nothing and would hide the others.
        ("fraction_of_means", "self-repair / direct effect", (-1.0, 2.0)),
    ];
    let mut drawn = Vec::new();
    for (column, label, (low, high)) in panels {
        let (mut marks, mut ends) = (Vec::new(), Vec::new());
        for s in series {
            let dots = s.rows(ask!("compare_depth_heads"))?.points("relative_depth", column)?;
            let line: Vec<Point> = s.rows(ask!("compare_depth_layers"))?.points("relative_depth", column)?;
            ends.extend(dots.iter().chain(&line).map(|p| p.1.clamp(low, high)).filter(|v| v.is_finite()));
            marks.push(Mark::Cloud { at: dots, colour: s.colour, radius: 1.8, opacity: 0.35 });
            marks.push(Mark::Cloud { at: line.clone(), colour: s.colour, radius: 3.5, opacity: 1.0 });
            marks.push(Mark::line(line, s.colour));
        }
        let x = Axis::numbers("layer / (layers − 1)", (-0.03, 1.03));
        let mut panel = Panel::new("", x, Axis::numbers(label, with_zero(ends))).zero();
        panel.marks.extend(marks);
        drawn.push(panel);
    }
    Ok(Figure {
        name: "compare_depth".into(),
        theme: THEME,
        caption:
            "Lines go through the means of the layers, small dots are heads. Fractions outside −1 … 2, from layers \
                  whose direct effects nearly cancel, are not drawn."
                .into(),
        sql: vec![ask!("compare_depth_layers"), ask!("compare_depth_heads")],
        chart: Chart {
            title: "Self-repair by relative depth".into(),
            settings: settings(series),
            legend: series.iter().map(Series::key).collect(),
            panels: drawn,
            columns: 1,
            height: 280.0,
        },
    })
}

/// Bars of several columns for each series, whose rows are given in the same order; the first series at the top.
fn bars(
    series: &[Series],
    of_series: &[Rows],
    columns: &[(&str, &str, Colour)],
    scale: f64,
) -> Result<(Vec<Cell>, Vec<f64>)> {
    let (mut cells, mut ends) = (Vec::new(), Vec::new());
    let high = 0.8 / columns.len() as f64;
    for (i, (s, rows)) in series.iter().zip(of_series).enumerate() {
        for (j, (column, name, colour)) in columns.iter().enumerate() {
            let value = scale * rows.number(column)?;
            // Rows of an axis count from below, runs are read from above.
            let top = (series.len() - 1 - i) as f64 + 0.4 - j as f64 * high;
            let name = format!("{}, {name}: {value:.3}", s.label);
            cells.push(Cell { corners: ((0.0, top), (value, top - high)), colour: *colour, name });
            ends.push(value);
        }
    }
    Ok((cells, ends))
}

fn rows_of(series: &[Series], query: impl Fn() -> Asked) -> Result<Vec<Rows>> {
    series.iter().map(|s| s.rows(query())).collect()
}

fn names(series: &[Series]) -> Axis {
    Axis::names("", series.iter().rev().map(|s| s.label.clone()))
}

fn box_keys(columns: &[(&str, &str, Colour)]) -> Vec<Key> {
    columns.iter().map(|(_, label, colour)| Key::Box(*colour, 1.0, (*label).into())).collect()
}

/// Height of a panel with one row per series.
fn row_height(series: &[Series], each: f64) -> f64 {
    (each * series.len() as f64).max(80.0)
}

fn causes(series: &[Series]) -> Result<Figure> {
    let query = || ask!("compare_causes");
    let rows = rows_of(series, query)?;
    let causes = causes_of(&rows)?;
    let (boxes, ends) = bars(series, &rows, &causes, 1.0)?;
    let axis = Axis::numbers("mean repair over all ablated heads, top tokens [logits]", with_zero(ends));
    let panel = Panel::new("", axis, names(series)).with(Mark::Boxes { boxes, opacity: 1.0 }).with(Mark::thin(
        (0.0, -1.0),
        (0.0, series.len() as f64),
        Colour::Soft,
    ));
    Ok(Figure {
        name: "compare_causes".into(),
        theme: THEME,
        caption: "Self-repair by its causes; each run's bars sum to its self-repair.".into(),
        sql: vec![query()],
        chart: Chart {
            title: "What repairs".into(),
            settings: settings(series),
            legend: box_keys(&causes),
            panels: vec![panel],
            columns: 1,
            height: row_height(series, 62.0),
        },
    })
}

/// How much of the direct effect each cause makes up for: all layers, and the second to last as in the paper.
fn shares(series: &[Series]) -> Result<Figure> {
    type Query = fn() -> Asked;
    let queries: [(&str, Query); 2] = [
        ("all ablated heads", || ask!("compare_shares")),
        ("heads of the second-to-last layer", || ask!("compare_shares_second_to_last")),
    ];
    let (mut panels, mut sql) = (Vec::new(), Vec::new());
    let rows: Vec<Vec<Rows>> = queries.iter().map(|(_, query)| rows_of(series, query)).collect::<Result<_>>()?;
    let causes = causes_of(rows.iter().flatten())?;
    for ((title, query), rows) in queries.into_iter().zip(&rows) {
        let (boxes, ends) = bars(series, rows, &causes, 100.0)?;
        let axis = Axis::numbers("share of the direct effect, top tokens [%]", with_zero(ends));
        let panel = Panel::new(title, axis, names(series)).with(Mark::Boxes { boxes, opacity: 1.0 });
        panels.push(panel);
        sql.push(query());
    }
    Ok(Figure {
        name: "compare_shares".into(),
        theme: THEME,
        caption:
            "Mean over tokens of each cause / direct effect, clipped to [0, 1] token by token, then over heads: the \
                  norm's share beside that of heads and MLPs. A run that did not ablate that layer has no bars."
                .into(),
        sql,
        chart: Chart {
            title: "Share of the direct effect that each cause repairs".into(),
            settings: settings(series),
            legend: box_keys(&causes),
            panels,
            columns: 1,
            height: row_height(series, 62.0),
        },
    })
}

const OUTCOMES: [(&str, &str, Colour); 3] = [
    ("not_repaired", "not repaired", RED),
    ("partly_repaired", "partly repaired", BLUE),
    ("over_repaired", "over-repaired", GREEN),
];

fn outcomes(series: &[Series]) -> Result<Figure> {
    let mut boxes = Vec::new();
    for (i, s) in series.iter().enumerate() {
        let rows = s.rows(ask!("compare_outcomes"))?;
        let shares: Vec<f64> = OUTCOMES.iter().map(|(c, ..)| rows.number(c)).collect::<Result<_>>()?;
        let middle = (series.len() - 1 - i) as f64;
        for ((from, to), (_, name, colour)) in stacked(&shares).into_iter().zip(OUTCOMES) {
            let corners = ((from, middle - 0.35), (to, middle + 0.35));
            boxes.push(Cell { corners, colour, name: format!("{}, {name}: {:.1} %", s.label, to - from) });
        }
    }
    let axis = Axis::numbers("tokens that lose more than 0.05 logits of direct effect [%]", (0.0, 100.0));
    let panel = Panel::new("", axis, names(series)).with(Mark::Boxes { boxes, opacity: 1.0 });
    Ok(Figure {
        name: "compare_outcomes".into(),
        theme: THEME,
        caption: "Outcomes of the loss, token by token, over all ablated heads.".into(),
        sql: vec![ask!("compare_outcomes")],
        chart: Chart {
            title: "How often a loss is not, partly or over-repaired".into(),
            settings: settings(series),
            legend: box_keys(&OUTCOMES),
            panels: vec![panel],
            columns: 1,
            height: row_height(series, 38.0),
        },
    })
}

fn summary(series: &[Series]) -> Result<Listing> {
    let texts = ["model", "ablation", "corpus"];
    let numbers = [
        "direct_effect",
        "logit_change",
        "self_repair",
        "fraction",
        "repair_attention",
        "repair_mlp",
        "repair_norm",
        "repair_write_norm",
        "norm_share",
    ];
    let mut columns: Vec<(String, bool)> = texts.iter().map(|t| ((*t).to_string(), true)).collect();
    columns.extend(["layers", "heads ablated", "tokens"].map(|c| (c.to_string(), false)));
    columns.extend(numbers.map(|c| (c.replace('_', " "), false)));
    let mut rows = Vec::new();
    for s in series {
        let found = s.rows(ask!("compare_summary"))?;
        let set = &s.run.settings;
        let mut row = vec![set.model.clone(), s.ablation.to_string(), set.corpus.clone().unwrap_or_default()];
        row.extend([set.layers, found.number("heads")?, set.tokens].map(|v| format!("{v:.0}")));
        for column in numbers {
            row.push(Listing::shown(found.number(column)?, 3));
        }
        rows.push(row);
    }
    Ok(Listing { columns, rows })
}

#[cfg(test)]
mod tests {
    use super::super::test_run;
    use super::*;

    fn page_of(runs: &[PathBuf]) -> (String, tempfile::TempDir) {
        let to = tempfile::tempdir().unwrap();
        compare(runs, to.path()).unwrap();
        (fs::read_to_string(to.path().join("index.html")).unwrap(), to)
    }

    #[test]
    fn two_models_are_told_apart_by_name_and_share_figures_and_a_table() {
        let (a, b) = (test_run("model-a", &["zero"]), test_run("model-b", &["zero"]));
        let (page, to) = page_of(&[a.path().into(), b.path().into()]);
        for name in ["compare_depth", "compare_causes", "compare_shares", "compare_outcomes"] {
            assert!(page.contains(&format!("<figure id=\"{name}\">")), "{name}");
            for ending in ["svg", "png"] {
                assert!(to.path().join("figures").join(format!("{name}.{ending}")).is_file(), "{name}.{ending}");
            }
        }
        assert!(page.contains(">model-a<") && page.contains(">model-b<") && !page.contains("model-a, zero"));
        let (body, _script) = page.split_once("<script>").unwrap();
        assert!(!body.contains("src=") && !body.contains("NaN"), "self-contained");
        // Means over the two heads: effects 1 and 0.5, repair 0.75 and −0.125, all of it by MLPs.
        for cell in ["0.750", "-0.438", "0.312", "0.417"] {
            assert_eq!(
                page.matches(&format!("<td>{cell}</td>")).count() / 2,
                if cell == "0.312" { 2 } else { 1 },
                "{cell}"
            );
        }
        assert!(page.contains("<title>model-a, MLPs: 0.312</title>"));
        // Drops of 1, 1, 1, 1 are repaired by ½, ½, 1, 1 (partly), and one of 2 by −½ (not).
        assert!(page.contains("<title>model-b, not repaired: 20.0 %</title>"));
        assert!(page.contains("<title>model-b, partly repaired: 80.0 %</title>"));
    }

    #[test]
    fn ablations_of_one_run_are_lines_of_their_own() {
        let (a, b) = (test_run("model-a", &["zero", "mean", "zero/erasers"]), test_run("model-b", &["zero"]));
        let (page, _to) = page_of(&[a.path().into(), b.path().into()]);
        for label in [">model-a, mean<", ">model-a, zero<", ">model-b, zero<"] {
            assert!(page.contains(label), "{label}");
        }
        assert!(!page.contains("erasers"));
    }

    #[test]
    fn runs_that_only_their_folder_tells_apart_are_named_by_it() {
        let (a, b) = (test_run("same", &["zero"]), test_run("same", &["zero"]));
        let (page, _to) = page_of(&[a.path().into(), b.path().into()]);
        assert!(page.contains(&format!("same, {}", a.path().display())), "{}", a.path().display());
    }

    #[test]
    fn what_cannot_be_compared_is_named() {
        let run = test_run("model-a", &["zero"]);
        let empty = tempfile::tempdir().unwrap();
        let to = empty.path().join("to");
        let error = |runs: &[PathBuf], to: &Path| format!("{:#}", compare(runs, to).unwrap_err());
        assert!(error(&[empty.path().into()], &to).contains("has no tables"));
        let missing = error(&[run.path().into(), empty.path().into()], &to);
        assert!(
            missing.contains("has no tables") && missing.contains(&empty.path().display().to_string()),
            "{missing}"
        );
        fs::remove_dir_all(run.path().join("tables/repair_outcomes")).unwrap();
        let unfinished = error(&[run.path().into(), run.path().into()], &to);
        assert!(unfinished.contains("no table repair_outcomes"), "{unfinished}");
        fs::write(empty.path().join(".self-repair-run"), "").unwrap();
        assert!(error(&[run.path().into(), run.path().into()], empty.path()).contains("is the folder of a run"));
    }

    #[test]
    fn one_run_gets_its_own_report_again() {
        let run = test_run("model-a", &["zero"]);
        compare(&[run.path().into()], Path::new("unused")).unwrap();
        let page = fs::read_to_string(run.path().join("report/index.html")).unwrap();
        assert!(page.contains("Self-repair in model-a") && run.path().join("figures/heads_zero.png").is_file());
        assert!(!Path::new("unused").exists());
    }
}
