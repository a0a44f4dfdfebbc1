//! Columns of the measured tables. Other people's scripts read these names.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

/// Raised when a column changes its name, type or meaning.
pub const SCHEMA_VERSION: &str = "1";

/// A column: name, type, unit, description. A name that ends in `?` may be null.
pub struct Column(pub &'static str, pub Type, pub &'static str, pub &'static str);

#[derive(Clone, Copy)]
pub enum Type {
    Text,
    /// UInt16
    Small,
    /// UInt32
    Int,
    /// Float32
    Float,
}

pub struct Table {
    pub name: &'static str,
    /// What one row stands for.
    pub grain: &'static str,
    /// How many leading columns are the key, by which rows are sorted.
    pub key: usize,
    pub columns: &'static [Column],
}

impl Table {
    pub fn schema(&self) -> SchemaRef {
        let field = |Column(name, kind, unit, description): &Column| {
            let data_type = match kind {
                Type::Text => DataType::Utf8,
                Type::Small => DataType::UInt16,
                Type::Int => DataType::UInt32,
                Type::Float => DataType::Float32,
            };
            let metadata = [("description", *description), ("unit", *unit)];
            Field::new(name.trim_end_matches('?'), data_type, name.ends_with('?'))
                .with_metadata(metadata.map(|(k, v)| (k.to_string(), v.to_string())).into_iter().collect())
        };
        let metadata = HashMap::from([("grain".to_string(), self.grain.to_string())]);
        Arc::new(Schema::new_with_metadata(self.columns.iter().map(field).collect::<Vec<_>>(), metadata))
    }
}

use Type::{Float, Int, Small, Text};

const PROMPT: Column = Column("prompt", Int, "", "number of the prompt, from 0");
const POSITION: Column = Column("position", Int, "", "position in the prompt, from 0 (the BOS if there is one)");

pub const MODEL: Table = Table {
    name: "model",
    grain: "the run's model",
    key: 1,
    columns: &[
        Column("name", Text, "", "short name of the model"),
        Column("architecture", Text, "", "the checkpoint's model_type"),
        Column("layers", Small, "", "blocks"),
        Column("heads", Small, "", "attention heads in a block"),
        Column("d_model", Int, "", "width of the residual stream"),
        Column("d_mlp", Int, "", "neurons in an MLP"),
        Column("vocab", Int, "", "rows of the unembedding"),
        Column("dtype", Text, "", "element type the checkpoint stores its weights in"),
        Column("source", Text, "", "model.source of the configuration"),
        Column("revision", Text, "", "version of the source"),
        Column(
            "sha256",
            Text,
            "",
            "SHA-256 of the checkpoint's file; of several, of the list `sum  name` as sha256sum prints it",
        ),
    ],
};

pub const TOKENS: Table = Table {
    name: "tokens",
    grain: "a token",
    key: 2,
    columns: &[
        PROMPT,
        POSITION,
        Column("token", Int, "", "token id at this position"),
        Column("text", Text, "", "the token as text; bytes that are no whole character show as U+FFFD"),
        Column("next_token?", Int, "", "the correct token, whose logit is measured; null at the last position"),
    ],
};

pub const PAIRS: Table = Table {
    name: "pairs",
    grain: "a resample sample and a prompt",
    key: 2,
    columns: &[
        Column("sample", Small, "", "number of the pairing, from 0"),
        PROMPT,
        Column("partner", Int, "", "the prompt whose z replaces this prompt's"),
    ],
};

pub const CLEAN: Table = Table {
    name: "clean",
    grain: "a prompt position that has a correct next token",
    key: 2,
    columns: &[
        PROMPT,
        POSITION,
        Column("logit", Float, "logits", "logit of the correct token less the mean logit of the position"),
        Column("log_prob", Float, "nats", "log-probability of the correct token"),
        Column("norm_scale", Float, "", "scale of the final norm: √(mean square + ε) of the final stream"),
        Column("residual_norm", Float, "", "Euclidean norm of the final stream"),
    ],
};

pub const DIRECT_EFFECTS: Table = Table {
    name: "direct_effects",
    grain: "a position and a component that writes to the stream",
    key: 5,
    columns: &[
        PROMPT,
        POSITION,
        Column(
            "component",
            Text,
            "",
            "embed, head, attention_bias (what attention writes that no head does), mlp, or constant (what the logit has without any component)",
        ),
        Column("layer?", Small, "", "block; null for embed and constant"),
        Column("head?", Small, "", "head; null unless the component is a head"),
        Column("direct_effect", Float, "logits", "the component's output · u / norm_scale"),
    ],
};

pub const ABLATIONS: Table = Table {
    name: "ablations",
    grain: "an ablation, a component and a position",
    key: 7,
    columns: &[
        Column("ablation", Text, "", "what the component's output was replaced by: mean, resample, zero"),
        Column("hold", Text, "", "which later components were held at their clean values: none"),
        Column("component", Text, "", "head"),
        Column("layer", Small, "", "block of the ablated component"),
        Column("head?", Small, "", "ablated head"),
        PROMPT,
        POSITION,
        Column("logit_change", Float, "logits", "ablated less clean logit of the correct token"),
        Column("direct_effect", Float, "logits", "direct effect of the component, clean"),
        Column("ablated_direct_effect", Float, "logits", "direct effect of what replaced it, by the clean norm scale"),
        Column("self_repair", Float, "logits", "logit_change - (ablated_direct_effect - direct_effect)"),
        Column("repair_attention", Float, "logits", "change of the direct effects of all other heads, summed"),
        Column("repair_mlp", Float, "logits", "change of the direct effects of all MLPs, summed"),
        Column("repair_norm", Float, "logits", "from the change of the final norm's scale: r'·u·(1/s' - 1/s)"),
        Column(
            "repair_by_erasers",
            Float,
            "logits",
            "the part of repair_attention + repair_mlp from components whose clean direct effect is negative",
        ),
        Column("norm_scale", Float, "", "scale of the final norm, clean"),
        Column("ablated_norm_scale", Float, "", "scale of the final norm, ablated"),
        Column("ablated_residual_norm", Float, "", "Euclidean norm of the final stream, ablated"),
    ],
};

/// All tables that the stages measure, in the order in which a run writes them.
pub const MEASURED: [&Table; 6] = [&TOKENS, &MODEL, &CLEAN, &DIRECT_EFFECTS, &PAIRS, &ABLATIONS];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_says_what_it_is() {
        for table in MEASURED {
            assert!(!table.grain.is_empty() && table.key <= table.columns.len());
            for field in table.schema().fields() {
                assert!(!field.metadata()["description"].is_empty(), "{}.{}", table.name, field.name());
                assert!(field.metadata().contains_key("unit"), "{}.{}", table.name, field.name());
            }
        }
    }

    /// The names and order that DESIGN promises to other people's scripts.
    #[test]
    fn the_contract_of_ablations_holds() {
        let schema = ABLATIONS.schema();
        let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
        let expected = "ablation hold component layer head prompt position logit_change direct_effect \
                        ablated_direct_effect self_repair repair_attention repair_mlp repair_norm repair_by_erasers \
                        norm_scale ablated_norm_scale ablated_residual_norm";
        assert_eq!(names, expected.split_whitespace().collect::<Vec<_>>());
    }
}
