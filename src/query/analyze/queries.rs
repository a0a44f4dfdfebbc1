//! The compiled-in SQL: one file per derived table, and the checks, which must return no rows.
//!
//! A file starts with a comment: the question, the grain, and one line `-- column[, column]: description [unit]` per
//! column or group of columns. This comment is the documentation of the derived table.

use std::borrow::Cow;
use std::collections::HashMap;

use selfrepair_core::tables::{Column, MEASURED};

/// A SQL file.
pub struct Query {
    /// The file's name without its ending, which is the table's name.
    pub name: Cow<'static, str>,
    pub text: Cow<'static, str>,
    /// Where it lies, for errors.
    pub file: Cow<'static, str>,
}

macro_rules! queries {
    ($folder:literal: $($name:literal),* $(,)?) => {
        &[$(Query {
            name: Cow::Borrowed($name),
            text: Cow::Borrowed(include_str!(concat!("../../../sql/", $folder, $name, ".sql"))),
            file: Cow::Borrowed(concat!("sql/", $folder, $name, ".sql")),
        }),*]
    };
}

/// Derived tables. Their order does not matter: each runs after those it reads.
pub const DERIVED: &[Query] = queries!("":
    "prompt_summary",
    "head_summary",
    "layer_summary",
    "repair_outcomes",
    "threshold_summary",
    "variance_explained",
    "norm_ratios",
    "top_repairers",
    "repairer_diversity",
    "neuron_summary",
    "anti_erasure",
    "recurring_neurons",
    "hold_summary",
    "iterative_repair",
    "iterative_agreement",
    "self_reinforcement",
    "addition_summary",
    "similar_heads",
    "notable_tokens",
    "task_summary",
);

/// Views: queries that a session over a run answers by name, computed when they are asked for.
pub const VIEWS: &[Query] =
    queries!("views/": "heads", "contexts", "top_contexts", "repairers", "prompt_sums", "document_sums");

/// Tables of runs whose model the paper's authors published numbers for, in the order in which they read each other.
pub const PAPER: &[Query] = queries!("paper/": "paper_comparison", "paper_agreement");

/// Queries that must return no rows.
pub const CHECKS: &[Query] = queries!("checks/":
    "no_nan",
    "clean_covers_the_targets",
    "every_token_was_measured",
    "every_component_has_a_direct_effect",
    "direct_effects_sum_to_the_logit",
    "self_repair_is_what_it_says",
    "causes_sum_to_self_repair",
    "last_layer_has_no_attention_repair",
    "projections_do_what_they_say",
    "top_tokens_are_the_highest",
    "repair_graph_sums_to_repair",
    "neurons_sum_to_their_mlp",
    "responses_are_what_they_say",
);

/// The measured tables of a run of schema 2 in the present schema, where columns differ by more than their type.
pub const SCHEMA_2: &[Query] = queries!("schema_2/":
    "direct_effects",
    "top_tokens",
    "ablations",
    "distributions",
    "component_repairs",
    "neuron_repairs",
    "neuron_totals",
    "neuron_curves",
    "repair_graph",
    "self_additions",
    "stream_additions",
    "head_similarity",
);

/// Those of a run of measurement version 2, which has the present schema but for a column.
pub const MEASUREMENT_2: &[Query] = queries!("measurement_2/": "stream_additions");

impl Query {
    /// The comment lines at the head of the file, without `--`, continuation lines joined to the line they continue.
    fn header(&self) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for line in self.text.lines().map_while(|l| l.strip_prefix("--")) {
            match (line.starts_with("   "), lines.last_mut()) {
                (true, Some(previous)) => {
                    previous.push(' ');
                    previous.push_str(line.trim());
                }
                _ => lines.push(line.trim().to_string()),
            }
        }
        lines
    }

    /// What the header says under `Question:`, `Grain:` or `Example:`.
    fn said(&self, what: &str) -> Option<String> {
        let header = self.header();
        let said = header.iter().find_map(|l| l.strip_prefix(what)?.strip_prefix(':'));
        said.map(|text| text.trim().to_string()).filter(|text| !text.is_empty())
    }

    pub fn has(&self, what: &str) -> bool {
        self.said(what).is_some()
    }

    /// What the query answers, or what a check asserts.
    pub fn question(&self) -> String {
        self.said("Question").unwrap_or_else(|| self.header().join(" "))
    }

    pub fn grain(&self) -> String {
        self.said("Grain").unwrap_or_default()
    }

    /// A query that reads the table.
    pub fn example(&self) -> Option<String> {
        self.said("Example")
    }

    /// (description, unit) of each column that the header names. ``as in `TABLE` `` stands for what is said there.
    pub fn columns(&self) -> HashMap<String, (String, String)> {
        let mut out = HashMap::new();
        for line in self.header() {
            let Some((names, rest)) = line.split_once(": ") else { continue };
            if ["Question", "Grain", "Example"].contains(&names) {
                continue;
            }
            let (description, unit) = match rest.trim().strip_suffix(']').and_then(|r| r.rsplit_once(" [")) {
                Some((description, unit)) if !unit.contains(',') => (description.trim(), unit),
                _ => (rest.trim(), ""),
            };
            for name in names.split(',').map(str::trim) {
                let (of_table, unit_there) =
                    as_in(description, name).unwrap_or((description.to_string(), String::new()));
                let unit = if unit.is_empty() { unit_there } else { unit.to_string() };
                out.insert(name.to_string(), (of_table, unit));
            }
        }
        out
    }
}

/// What the table that a description refers to says of the column, and its unit.
fn as_in(description: &str, column: &str) -> Option<(String, String)> {
    let table = description.strip_prefix("as in `")?.strip_suffix('`')?;
    if let Some(measured) = MEASURED.iter().find(|t| t.name == table) {
        let Column(_, _, unit, description) = measured.columns.iter().find(|c| c.0.trim_end_matches('?') == column)?;
        return Some((description.to_string(), unit.to_string()));
    }
    DERIVED.iter().chain(VIEWS).find(|q| q.name == table)?.columns().remove(column)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_sql_file_is_compiled_in() {
        for (folder, queries) in [("sql", DERIVED), ("sql/paper", PAPER), ("sql/checks", CHECKS), ("sql/views", VIEWS)]
        {
            let mut files: Vec<String> =
                std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder))
                    .unwrap()
                    .filter_map(|e| Some(e.ok()?.path()))
                    .filter(|p| p.extension().is_some_and(|e| e == "sql"))
                    .map(|p| p.file_stem().unwrap().to_string_lossy().into_owned())
                    .collect();
            let mut names: Vec<String> = queries.iter().map(|q| q.name.to_string()).collect();
            files.sort();
            names.sort();
            assert_eq!(files, names, "{folder}");
        }
    }

    #[test]
    fn derived_tables_say_question_and_grain() {
        for query in DERIVED.iter().chain(VIEWS).chain(PAPER) {
            assert!(query.question().ends_with('?'), "{}: {}", query.name, query.question());
            assert!(!query.grain().is_empty(), "{}", query.name);
        }
        let query = |name: &str| DERIVED.iter().find(|q| q.name == name).unwrap();
        let columns = query("head_summary").columns();
        assert_eq!(columns["self_repair"], ("mean self-repair".into(), "logits".into()));
        assert_eq!(columns["repair_mlp"].1, "logits");
        // A description that goes on in a second line.
        let columns = query("layer_summary").columns();
        assert!(columns["repair_norm"].0.ends_with("in `head_summary`"), "{:?}", columns["repair_norm"]);
        assert_eq!(columns["repair_norm"].1, "logits");
        // What stands for the words of another table: of a measured one, and of one that refers to a third.
        assert_eq!(
            columns["ablation"].0,
            "what the component's output was replaced by: mean, project_only, project_out, \
            resample, zero"
        );
        let view = VIEWS.iter().find(|q| q.name == "heads").unwrap().columns();
        assert_eq!(view["self_repair"], ("mean self-repair".into(), "logits".into()));
        assert_eq!(view["layer"].0, "block of the ablated component");
    }
}
