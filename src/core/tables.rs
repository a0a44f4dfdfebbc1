//! Columns of the measured tables. Users' scripts depend on these names.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

/// Raised when a column is added, or its name, type or meaning changes.
pub const SCHEMA_VERSION: &str = "2";

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
    /// What one row is.
    pub grain: &'static str,
    /// How many leading columns are the key, by which rows are sorted.
    pub key: usize,
    pub columns: &'static [Column],
}

impl Table {
    pub fn schema(&self) -> SchemaRef {
        self.schema_with(&[])
    }

    /// The schema with further columns at its end.
    pub fn schema_with(&self, more: &[Column]) -> SchemaRef {
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
        Arc::new(Schema::new_with_metadata(self.columns.iter().chain(more).map(field).collect::<Vec<_>>(), metadata))
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
            "SHA-256 of the checkpoint's file; for several files, of their list as sha256sum prints it",
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
        Column("text", Text, "", "the token as text; bytes that are not a complete character appear as U+FFFD"),
        Column("next_token?", Int, "", "the correct token, whose logit is measured; null at the last position"),
        Column(
            "document?",
            Int,
            "",
            "number of the token's document in the corpus, from 0 (those without text are not counted); a separator counts \
             as part of the document before it; null for a BOS that was put before the prompt",
        ),
    ],
};

pub const TARGETS: Table = Table {
    name: "targets",
    grain: "a prompt of a prompt set",
    key: 1,
    columns: &[
        PROMPT,
        Column("position", Int, "", "the position whose logit is measured"),
        Column("answer", Int, "", "the token whose logit is measured"),
        Column("wrong?", Int, "", "the token whose logit is subtracted, if any"),
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
        Column("logit", Float, "logits", "logit of the correct token minus the mean logit of the position"),
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
            "embed, head, attention_bias (b_O', which belongs to no head), mlp, or constant (the part of the logit that no component writes)",
        ),
        Column("layer?", Small, "", "block; null for embed and constant"),
        Column("head?", Small, "", "head; null unless the component is a head"),
        Column("direct_effect", Float, "logits", "the component's output · u / norm_scale"),
    ],
};

/// The key of measurements on an ablated run.
const ABLATION: Column = Column(
    "ablation",
    Text,
    "",
    "what the component's output was replaced by: mean, project_only, project_out, resample, zero",
);
const HOLD: Column = Column(
    "hold",
    Text,
    "",
    "which later components were held at their clean values: none, erasers (clean direct effect below -0.05), heads, \
     mlps, last_mlp, or a component's name",
);
const COMPONENT: Column = Column(
    "component",
    Text,
    "",
    "what was ablated: head, mlp, attention (all heads and bias of a layer), block (both)",
);
const LAYER: Column = Column("layer", Small, "", "block of the ablated component");
const HEAD: Column = Column("head?", Small, "", "ablated head; null unless the component is a head");
const NEURON_LAYER: Column = Column("neuron_layer", Small, "", "block of the MLP whose neurons these are");

pub const ABLATIONS: Table = Table {
    name: "ablations",
    grain: "an ablation, a component and a position",
    key: 7,
    columns: &[
        ABLATION,
        HOLD,
        COMPONENT,
        LAYER,
        HEAD,
        PROMPT,
        POSITION,
        Column("logit_change", Float, "logits", "ablated minus clean logit of the correct token"),
        Column("direct_effect", Float, "logits", "direct effect of the component, clean"),
        Column("ablated_direct_effect", Float, "logits", "direct effect of the replacement, with the clean norm scale"),
        Column("self_repair", Float, "logits", "logit_change - (ablated_direct_effect - direct_effect)"),
        Column("repair_attention", Float, "logits", "change of the direct effects of all other heads, summed"),
        Column("repair_mlp", Float, "logits", "change of the direct effects of all other MLPs, summed"),
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

/// Columns that `ablation.distribution = true` adds to `ablations`.
pub const DISTRIBUTION: [Column; 2] = [
    Column("ablated_log_prob", Float, "nats", "log-probability of the correct token, ablated"),
    Column("kl_divergence", Float, "nats", "Kullback-Leibler divergence of the ablated from the clean distribution"),
];

pub const TOP_TOKENS: Table = Table {
    name: "top_tokens",
    grain: "a component that is ablated and one of its top tokens, on which its direct effect is highest",
    key: 4,
    columns: &[
        COMPONENT,
        LAYER,
        HEAD,
        Column("rank", Int, "", "rank of the token by direct effect, from 0; ties in order of prompt, position"),
        PROMPT,
        POSITION,
        Column("direct_effect", Float, "logits", "direct effect of the component, clean"),
    ],
};

pub const COMPONENT_REPAIRS: Table = Table {
    name: "component_repairs",
    grain: "an ablated component, one of its top tokens, and one of the ten later components that change most",
    key: 8,
    columns: &[
        ABLATION,
        HOLD,
        COMPONENT,
        LAYER,
        HEAD,
        PROMPT,
        POSITION,
        Column("rank", Small, "", "rank by absolute change, from 0"),
        Column("repairer", Text, "", "what changed: head or mlp"),
        Column("repairer_layer", Small, "", "its block"),
        Column("repairer_head?", Small, "", "its head; null for an MLP"),
        Column("direct_effect", Float, "logits", "its direct effect, clean"),
        Column("change", Float, "logits", "change of its direct effect"),
    ],
};

pub const NEURON_REPAIRS: Table = Table {
    name: "neuron_repairs",
    grain: "an ablated head, one of its top tokens, an MLP, and one of the neurons that repair most",
    key: 9,
    columns: &[
        ABLATION,
        HOLD,
        COMPONENT,
        LAYER,
        HEAD,
        PROMPT,
        POSITION,
        NEURON_LAYER,
        Column("rank", Small, "", "rank by change, the most repairing first, from 0"),
        Column("neuron", Int, "", "which neuron of the MLP"),
        Column("direct_effect", Float, "logits", "the neuron's direct effect, clean"),
        Column("change", Float, "logits", "change of its direct effect"),
    ],
};

pub const NEURON_TOTALS: Table = Table {
    name: "neuron_totals",
    grain: "an ablated head, one of its top tokens, and an MLP",
    key: 8,
    columns: &[
        ABLATION,
        HOLD,
        COMPONENT,
        LAYER,
        HEAD,
        PROMPT,
        POSITION,
        NEURON_LAYER,
        Column("total_change", Float, "logits", "change of the direct effects of all its neurons, summed"),
        Column("positive_change", Float, "logits", "sum of the positive changes"),
        Column("absolute_change", Float, "logits", "sum of the absolute changes"),
        Column("top_percent_change", Float, "logits", "the sum of the 1 % of neurons with the largest change"),
    ],
};

pub const NEURON_CURVES: Table = Table {
    name: "neuron_curves",
    grain: "an ablated head, an MLP, and a rank of its neurons by change, token by token",
    key: 5,
    columns: &[
        ABLATION,
        LAYER,
        Column("head", Small, "", "ablated head"),
        NEURON_LAYER,
        Column("rank", Small, "", "rank among a token's neurons, the most repairing first, from 0"),
        Column("tokens", Int, "", "number of top tokens in the means"),
        Column("cumulative_share", Float, "", "mean share of the absolute change in the neurons up to this rank"),
        Column(
            "above_50",
            Float,
            "",
            "share of tokens whose neuron of this rank rises by over 50 % of the head's direct effect",
        ),
        Column("above_10", Float, "", "the same for 10 %"),
        Column("above_5", Float, "", "the same for 5 %"),
        Column("above_2_5", Float, "", "the same for 2.5 %"),
        Column("above_1", Float, "", "the same for 1 %"),
        Column(
            "direct_effect",
            Float,
            "logits",
            "median over tokens (at most 100 of them, spread over their ranks) of the clean direct effect of the neuron of this rank",
        ),
    ],
};

pub const REPAIR_GRAPH: Table = Table {
    name: "repair_graph",
    grain: "an ablated component, a subset of tokens, and a later component that may repair it",
    key: 9,
    columns: &[
        ABLATION,
        HOLD,
        Column("ablated", Text, "", "what was ablated: head, mlp, attention, block"),
        LAYER,
        HEAD,
        Column("subset", Text, "", "all tokens, or the ablated component's top tokens"),
        Column("component", Text, "", "what may repair: head or mlp"),
        Column("repairer_layer", Small, "", "its block"),
        Column("repairer_head?", Small, "", "its head; null for an MLP"),
        Column("tokens", Int, "", "number of tokens in the mean"),
        Column("mean_change", Float, "logits", "mean change of its direct effect"),
        Column(
            "standard_error?",
            Float,
            "logits",
            "standard error of the mean, clustered by prompt; null with fewer than two prompts",
        ),
    ],
};

pub const SELF_ADDITIONS: Table = Table {
    name: "self_additions",
    grain: "a head, something added to the stream that it reads at one position, and that position",
    key: 6,
    columns: &[
        Column("layer", Small, "", "block of the head"),
        Column("head", Small, "", "the head"),
        Column(
            "added",
            Text,
            "",
            "own: the head's output; random_head: the output of another head; random_direction: a random vector with the norm of the head's output",
        ),
        Column("multiple", Float, "", "what the addition was multiplied by"),
        PROMPT,
        POSITION,
        Column("direct_effect", Float, "logits", "direct effect of the head, clean"),
        Column("new_direct_effect", Float, "logits", "its direct effect after the addition, with the clean norm scale"),
    ],
};

pub const STREAM_ADDITIONS: Table = Table {
    name: "stream_additions",
    grain: "an ablated head, a block before which a multiple of the head's output was added to the stream at one \
            position, and that position, one of the head's top tokens",
    key: 6,
    columns: &[
        Column("layer", Small, "", "block of the head"),
        Column("head", Small, "", "the head"),
        Column(
            "added_at",
            Small,
            "",
            "the block before which the head's clean output was added: any block, also the head's own or an earlier one",
        ),
        Column("multiple", Float, "", "what the output was multiplied by"),
        PROMPT,
        POSITION,
        Column(
            "direct_effect",
            Float,
            "logits",
            "direct effect of the head, clean; the addition has multiple times that",
        ),
        Column("logit_change", Float, "logits", "logit of the correct token after the addition minus the clean one"),
        Column(
            "response",
            Float,
            "logits",
            "logit_change - multiple · direct_effect: the response of the rest of the model; the sum of the next three columns",
        ),
        Column(
            "response_attention",
            Float,
            "logits",
            "change of the direct effects of all heads from that block on, summed",
        ),
        Column("response_mlp", Float, "logits", "change of the direct effects of all MLPs from that block on, summed"),
        Column("response_norm", Float, "logits", "from the change of the final norm's scale: r'·u·(1/s' - 1/s)"),
        Column("own_change?", Float, "logits", "change of the head's own direct effect; null if added after its block"),
    ],
};

pub const HEAD_SIMILARITY: Table = Table {
    name: "head_similarity",
    grain: "a pair of heads",
    key: 4,
    columns: &[
        Column("layer", Small, "", "block of the one head"),
        Column("head", Small, "", "the one head"),
        Column("other_layer", Small, "", "block of the other"),
        Column("other_head", Small, "", "the other"),
        Column("tokens", Int, "", "tokens that the means are over"),
        Column("cosine", Float, "", "mean cosine of the two heads' outputs in the stream"),
        Column("cosine_without_token", Float, "", "the same without the parts along the correct token's direction u"),
    ],
};

/// All tables that the stages measure, in the order in which a run writes them.
pub const ROUNDING: Table = Table {
    name: "rounding",
    grain: "a column of `ablations`, if projections were not computed in float32",
    key: 1,
    columns: &[
        Column("measured", Text, "", "a column of `ablations`"),
        Column("precision", Text, "", "runtime.precision"),
        Column("rows", Int, "", "rows of the first shard, which is also computed in float32"),
        Column("root_mean_square", Float, "as the column", "of the column in float32"),
        Column("root_mean_square_error", Float, "as the column", "of the difference from float32"),
        Column("largest_error", Float, "as the column", "largest difference from float32, as an absolute value"),
        Column("tolerance", Float, "", "factor by which the tolerance of checks exceeds that of float32"),
    ],
};

pub const MEASURED: [&Table; 17] = [
    &TOKENS,
    &TARGETS,
    &MODEL,
    &CLEAN,
    &DIRECT_EFFECTS,
    &PAIRS,
    &TOP_TOKENS,
    &ABLATIONS,
    &COMPONENT_REPAIRS,
    &NEURON_REPAIRS,
    &NEURON_TOTALS,
    &NEURON_CURVES,
    &REPAIR_GRAPH,
    &SELF_ADDITIONS,
    &STREAM_ADDITIONS,
    &HEAD_SIMILARITY,
    &ROUNDING,
];

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

    /// The names and order that other people's scripts read.
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
