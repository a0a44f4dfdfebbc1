//! Files, tables, figures, settings and links that `docs/` and the README name exist.

use std::collections::BTreeSet;
use std::path::Path;

use selfrepair_core::config::Config;

use crate::support::*;

fn page(name: &str) -> String {
    std::fs::read_to_string(name).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn pages() -> Vec<String> {
    let docs = files(Path::new("docs")).into_iter().filter(|p| p.extension().is_some_and(|e| e == "md"));
    let names = docs.map(|p| p.display().to_string());
    names.chain(["README.md", "ARCHITECTURE.md", "datasets/README.md"].map(String::from)).collect()
}

/// What stands between single backquotes outside blocks of code.
fn spans(page: &str) -> Vec<&str> {
    let text = page.split("\n```").step_by(2);
    text.flat_map(|part| part.split('`').skip(1).step_by(2)).collect()
}

/// The words of each command in `sh` blocks, without quotes or comments. A quote, or a backslash at a line's end, goes on
/// in the next line.
fn commands(page: &str) -> Vec<Vec<String>> {
    let mut commands = Vec::new();
    for block in code_blocks(page, "sh") {
        let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
        let mut comment = false;
        for c in block.replace("\\\n", " ").chars() {
            comment &= c != '\n';
            match quote {
                _ if comment => {}
                None if c == '#' && word.is_empty() => comment = true,
                None if c == '\'' || c == '"' => quote = Some(c),
                None if c.is_whitespace() => {
                    words.push(std::mem::take(&mut word));
                    words.retain(|w| !w.is_empty());
                    if c == '\n' && !words.is_empty() {
                        commands.push(std::mem::take(&mut words));
                    }
                }
                Some(q) if c == q => quote = None,
                _ => word.push(c),
            }
        }
    }
    commands
}

#[test]
fn links_lead_to_files() {
    for name in pages() {
        let text = page(&name);
        let folder = Path::new(&name).parent().unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap();
            if !file.is_empty() && !file.contains("://") {
                assert!(folder.join(file).exists(), "{name} links to {link}");
            }
        }
    }
}

#[test]
fn commands_are_understood_and_their_settings_exist() {
    for name in pages() {
        for words in commands(&page(&name)).iter().filter(|words| words[0] == "pipeline" && words[1] == "run") {
            let of = |flag: &str| words.windows(2).filter(|w| w[0] == flag).map(|w| w[1].clone()).collect::<Vec<_>>();
            let file = of("--config").pop();
            let loaded = Config::load(file.as_deref().map(Path::new), &of("--set"));
            loaded.unwrap_or_else(|e| panic!("{name}: {}: {e:#}", words.join(" ")));
        }
    }
}

#[test]
fn the_queries_of_the_readme_run() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("analyze", dir.path(), &[]));
    let session = selfrepair_query::sql::Tables::open(dir.path()).unwrap();
    let commands = commands(&page("README.md"));
    let queries: Vec<&String> = commands.iter().filter(|c| c.len() == 3 && c[1] == "sql").map(|c| &c[2]).collect();
    assert!(queries.len() >= 4, "{queries:?}");
    for query in queries {
        session.collect(query, &[]).unwrap_or_else(|e| panic!("{query}: {e:#}"));
    }
}

#[test]
fn every_query_that_a_page_names_exists() {
    for name in pages().iter().filter(|n| *n != "docs/own-queries.md") {
        for span in spans(&page(name)).into_iter().filter(|s| s.starts_with("sql/") && s.ends_with(".sql")) {
            assert!(span.contains('*') || Path::new(span).exists(), "{name} names {span}");
        }
    }
}

#[test]
fn every_table_setting_and_figure_of_the_paper_exists() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let more = [
        "ablation.kinds=[\"resample\", \"mean\", \"zero\", \"project_out\", \"project_only\"]",
        "ablation.hold=[\"erasers\", \"last_mlp\"]",
    ];
    succeeded(run_tiny("all", &out, &[&EVERYTHING[..], &more].concat()));
    let compared = dir.path().join("comparison");
    let mut command = pipeline();
    command.arg("report").arg("--out").arg(&out).arg("--out").arg(&out).arg("--to").arg(&compared);
    succeeded(command.output().unwrap());
    let drawn: BTreeSet<String> = files(&out.join("figures"))
        .into_iter()
        .chain(files(&compared.join("figures")))
        .map(|p| p.file_name().unwrap().to_string_lossy().into_owned())
        .collect();

    let text = page("docs/figures.md");
    let tables: Vec<String> = selfrepair_query::catalog::built_in().unwrap().into_iter().map(|t| t.name).collect();
    let settings = toml::Table::try_from(Config::load(None, &[]).unwrap()).unwrap();
    let (mut figures, mut sections) = (0, 0);
    for section in text.split("\n## ").skip(1) {
        let title = section.lines().next().unwrap();
        let item = |name: &str| {
            let item = section.split("\n- ").find(|i| i.starts_with(&format!("{name}: ")));
            item.and_then(|i| i.split("\n\n").next()).unwrap_or_else(|| panic!("{title} has no `{name}`"))
        };
        for span in spans(item("settings")).iter().filter(|s| s.contains('.')) {
            let (section, key) = span.split_once('.').unwrap();
            assert!(settings.get(section).and_then(|s| s.get(key)).is_some(), "{title}: the setting {span}");
        }
        let named = spans(item("tables"));
        assert!(tables.iter().any(|t| named.contains(&t.as_str())), "{title} names no table");
        let is_name = |s: &&&str| s.contains('_') && !s.contains('/');
        let columns = ["norm_clipped", "top_five_share", "norm_scale", "residual_norm"];
        for span in named.iter().filter(is_name).filter(|s| !columns.contains(s)) {
            assert!(tables.iter().any(|t| t == span), "{title}: the table {span}");
        }
        for figure in spans(item("figures")).into_iter().filter(|s| s.ends_with(".svg")) {
            let is_there = match figure.split_once("HEAD") {
                Some((before, after)) => drawn.iter().any(|d| d.starts_with(before) && d.ends_with(after)),
                // Drawn of models that the authors measured.
                None if figure.starts_with("authors_") => continue,
                None => drawn.contains(figure),
            };
            assert!(is_there, "{title}: {figure} is not among {drawn:?}");
            figures += 1;
        }
        sections += 1;
    }
    assert_eq!((sections, figures > 30), (13, true), "{sections} sections name {figures} figures");
}

#[test]
fn a_report_of_one_run_has_its_own_place() {
    let mut command = pipeline();
    command.args(["report", "--out", "A", "--to", "B"]);
    let error = failed(command.output().unwrap());
    assert!(error.contains("--to B is for a comparison of several runs"), "{error}");
    assert!(error.contains("the report of one run lies in A/report"), "{error}");
}

#[test]
fn two_reports_at_once_beside_each_other_both_succeed() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("all", dir.path(), &[]));
    let report = || {
        let mut command = pipeline();
        command.arg("report").arg("--out").arg(dir.path());
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    let running: Vec<_> = (0..3).map(|_| report()).collect();
    for one in running {
        succeeded(one.wait_with_output().unwrap());
    }
}
