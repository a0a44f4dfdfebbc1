//! The description of a run that a figure shows.

use std::path::Path;

use anyhow::Result;

use super::Rows;
use super::query::ask;
use selfrepair_core::config::Config;
use selfrepair_core::own_files;
use selfrepair_query::analyze::Tables;
use selfrepair_query::catalog::thousands;

pub struct Settings {
    pub model: String,
    pub layers: f64,
    pub heads: f64,
    pub tokens: f64,
    pub prompts: f64,
    /// Where the text came from; unknown of tables without their configuration.
    pub corpus: Option<String>,
}

impl Settings {
    pub fn read(tables: &Tables, out: &Path) -> Result<Self> {
        let model = Rows::ask(tables, &ask!("model"))?;
        let counts = Rows::ask(tables, &ask!("counts"))?;
        // The report stage writes the configuration before it draws.
        let config = own_files::read_record(&out.join("report").join("config.toml")).ok();
        let config: Option<Config> = config.and_then(|text| toml::from_slice(&text).ok());
        Ok(Self {
            model: model.texts("name")?.concat(),
            layers: model.number("layers")?,
            heads: model.number("heads")?,
            tokens: counts.number("tokens")?,
            prompts: counts.number("prompts")?,
            corpus: config.map(|c| corpus_name(&c.corpus.source)),
        })
    }

    /// The line under a figure's title.
    pub fn line(&self, what: &str) -> String {
        let corpus = self.corpus.as_ref().map_or(String::new(), |c| format!(" of {c}"));
        let measured = format!("{} tokens, {} prompts{corpus}", grouped(self.tokens), grouped(self.prompts));
        match what {
            "" => format!("{} · {measured}", self.model),
            what => format!("{} · {what} · {measured}", self.model),
        }
    }
}

/// A file by its name, because a figure should not tell where on a disk it lay.
fn corpus_name(source: &str) -> String {
    match source.split_once(':') {
        Some((_, name)) => name.to_string(),
        None => Path::new(source).file_name().map_or(source.to_string(), |n| n.to_string_lossy().into_owned()),
    }
}

/// 100000 → "100,000".
pub fn grouped(value: f64) -> String {
    thousands(value.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_paths_are_not_told() {
        assert_eq!([7.0, 999.0, 1000.0, 1_234_567.0].map(grouped), ["7", "999", "1,000", "1,234,567"]);
        assert_eq!(corpus_name("/home/someone/texts.jsonl"), "texts.jsonl");
        assert_eq!(corpus_name("hf:NeelNanda/pile-10k"), "NeelNanda/pile-10k");
    }
}
