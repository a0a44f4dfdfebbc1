//! The data card: the configurations that `datasets` reads (one per table), and an introduction for readers.

use std::fmt::Write;

use anyhow::Result;

use selfrepair_core::config::Config;
use selfrepair_query::catalog;
use selfrepair_query::catalog::TableDoc;
use selfrepair_query::catalog::escape::{code, is_plain, text, yaml};
use selfrepair_query::sql::Tables;
use selfrepair_report::Rows;

/// The table that is loaded when none is named.
const DEFAULT: &str = "head_summary";

/// The kind of a table that is the user's own: what is said of it comes from its file.
const OWN: &str = "own";

/// `README.md` of the data set `name`, which is checked, with the tables `sent`. Names of models, files and tables are
/// text in it.
pub fn card(tables: &Tables, sent: &[TableDoc], config: &str, name: &str) -> Result<String> {
    let config: Config = toml::from_str(config)?;
    let measured: Vec<(&TableDoc, u64)> =
        sent.iter().map(|table| tables.size(&table.name).map(|(_, rows)| (table, rows))).collect::<Result<_>>()?;
    let model = Rows::of(tables, "select name, architecture, layers, heads, source, revision, sha256 from model")?;
    let counts = Rows::of(tables, "select count(distinct prompt) as prompts, count(*) as tokens from clean")?;
    let said = |column: &str| -> Result<String> { Ok(model.texts(column)?.concat()) };
    let kinds: Vec<&str> = config.ablation.kinds.iter().map(|k| k.name()).collect();

    let mut card = format!("---\npretty_name: {}\n", yaml(&format!("Self-repair of {}", said("name")?)));
    card.push_str("tags:\n- interpretability\n- self-repair\nconfigs:\n");
    // `datasets` takes an empty table for a mistake.
    for (table, _) in measured.iter().filter(|(table, rows)| *rows > 0 && is_plain(&table.name)) {
        // Of the user's own, `no` or `1` would be no text.
        let name = if table.kind == OWN { yaml(&table.name) } else { table.name.clone() };
        writeln!(card, "- config_name: {name}\n  data_files: tables/{}/*.parquet", table.name)?;
        if table.name == DEFAULT {
            card.push_str("  default: true\n");
        }
    }
    card.push_str("---\n\n");
    writeln!(
        card,
        "# Self-repair of {}\n\n\
         When a part of a language model is ablated, later parts change and make up for some of the loss. These tables \
         measure that, as defined in *Explorations of Self-Repair in Language Models* (Rushing & Nanda, ICML 2024, \
         [arXiv 2402.15390](https://arxiv.org/abs/2402.15390)).\n",
        text(&said("name")?)
    )?;
    let revision = said("revision")?;
    let revision = if revision.is_empty() { revision } else { format!(", revision {}", code(&revision)) };
    writeln!(
        card,
        "| | |\n| --- | --- |\n| model | {}{revision} ({}, {} layers of {} heads), SHA-256 {} |\n\
         | text | {}: {} tokens of {} prompts measured |\n| ablations | {} |\n| made by | pipeline {} |\n",
        code(&said("source")?),
        text(&said("architecture")?),
        model.number("layers")?,
        model.number("heads")?,
        code(&said("sha256")?),
        code(&config.corpus.source),
        catalog::thousands(counts.number("tokens")? as u64),
        catalog::thousands(counts.number("prompts")? as u64),
        kinds.join(", "),
        env!("CARGO_PKG_VERSION")
    )?;
    writeln!(
        card,
        "```python\nfrom datasets import load_dataset\n\nheads = load_dataset(\"{name}\", \"{DEFAULT}\", \
         split=\"train\").to_pandas()\n```\n\n\
         `config.toml` is the configuration of the run, `report.html` its report, `figures/` its figures. What every \
         column means: [tables.md](tables.md).\n\n| table | rows | one row for |\n| --- | --- | --- |"
    )?;
    for (table, rows) in &measured {
        let name = code(&table.name);
        let grain = if table.kind == OWN { text(&table.grain) } else { table.grain.replace('|', "\\|") };
        writeln!(card, "| {name} | {} | {grain} |", catalog::thousands(*rows))?;
    }
    Ok(card)
}
