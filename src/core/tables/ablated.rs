//! Tables about ablated runs.

use super::Type::{Count, Flag, Float, Key, Name, Setting, Text};
use super::{Column, POSITION, PROMPT, Table};

const ABLATION: Column = Column(
    "ablation",
    Text,
    "",
    "what the component's output was replaced by: mean, project_only, project_out, resample, zero",
);
const STRENGTH: Column = Column(
    "strength",
    Setting,
    "",
    "how far the output was moved towards what replaces it, λ in z' = z + λ (replacement - z); 1 replaces it",
);
const HOLD: Column = Column(
    "hold",
    Text,
    "",
    "which later components were held: none, erasers (clean direct effect below -0.05), heads, mlps, last_mlp, or a \
     component's name",
);
const HOLD_VALUE: Column =
    Column("hold_value", Text, "", "what held components were held at: clean (their output in the clean run)");
const HOLD_OWN_MLP: Column =
    Column("hold_own_mlp", Flag, "", "whether a hold includes the MLP of the ablated head's own layer");
pub(super) const COMPONENT: Column = Column(
    "component",
    Text,
    "",
    "what was ablated: head, mlp, attention (all heads and bias of a layer), block (both)",
);
pub(super) const NAME: Column =
    Column("name", Name, "", "name of the ablated component, such as L26H2, MLP26, ATTN26 or BLOCK26");
pub(super) const LAYER: Column = Column("layer?", Key, "", "block of the ablated component");
pub(super) const HEAD: Column = Column("head?", Key, "", "ablated head; null unless the component is a head");
const NEURON_LAYER: Column = Column("neuron_layer", Key, "", "block of the MLP whose neurons these are");
const TOP: Column = Column("subset", Text, "", "which tokens: top, the ablated head's top tokens");
const EXPERT: Column = Column("expert?", Key, "", "expert of a mixture; null in a dense MLP");
const REPAIRER_NAME: Column = Column("repairer_name", Name, "", "its name, such as L28H3 or MLP29");
const REPAIRER_LAYER: Column = Column("repairer_layer", Key, "", "its block");
const REPAIRER_HEAD: Column = Column("repairer_head?", Key, "", "its head; null for an MLP");

/// The key of `ablations` without prompt and position, and further columns.
macro_rules! of_ablation {
    [$($column:expr),* $(,)?] => {
        &[ABLATION, STRENGTH, HOLD, HOLD_VALUE, HOLD_OWN_MLP, COMPONENT, NAME, LAYER, HEAD, $($column),*]
    };
}

pub const ABLATIONS: Table = Table {
    name: "ablations",
    grain: "an ablation, a component and a position",
    key: 11,
    setting: None,
    columns: of_ablation![
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
            "repair_write_norm",
            Float,
            "logits",
            "from the change of the scales of norms on what parts write: (γ_post ⊙ w')·u/s·(1/s_post' - 1/s_post), summed \
             over all parts; 0 in models without such norms",
        ),
        Column(
            "repair_write_norm_own",
            Float,
            "logits",
            "the part of repair_write_norm from the ablated component's own part, which no later component causes",
        ),
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

pub const DISTRIBUTIONS: Table = Table {
    name: "distributions",
    grain: "an ablation, a component and a position, as in `ablations`",
    key: 11,
    setting: Some("ablation.distribution = true"),
    columns: of_ablation![
        PROMPT,
        POSITION,
        Column("ablated_log_prob", Float, "nats", "log-probability of the correct token, ablated"),
        Column(
            "kl_divergence",
            Float,
            "nats",
            "Kullback-Leibler divergence of the ablated from the clean distribution",
        ),
    ],
};

pub const COMPONENT_REPAIRS: Table = Table {
    name: "component_repairs",
    grain: "an ablated component, one of its top tokens, and one of the ten later components that change most",
    key: 12,
    setting: None,
    columns: of_ablation![
        PROMPT,
        POSITION,
        Column("rank", Key, "", "rank by absolute change, from 1"),
        Column("repairer", Text, "", "what changed: head or mlp"),
        REPAIRER_NAME,
        REPAIRER_LAYER,
        REPAIRER_HEAD,
        Column("direct_effect", Float, "logits", "its direct effect, clean"),
        Column("change", Float, "logits", "change of its direct effect"),
    ],
};

pub const NEURON_REPAIRS: Table = Table {
    name: "neuron_repairs",
    grain: "an ablated head, one of its top tokens, an MLP, and one of the neurons that repair most",
    key: 15,
    setting: Some("neurons.layers"),
    columns: of_ablation![
        PROMPT,
        POSITION,
        NEURON_LAYER,
        TOP,
        EXPERT,
        Column("rank", Key, "", "rank by change, the most repairing first, from 1"),
        Column("neuron", Key, "", "which neuron of the MLP"),
        Column("direct_effect", Float, "logits", "the neuron's direct effect, clean"),
        Column("change", Float, "logits", "change of its direct effect"),
    ],
};

pub const NEURON_TOTALS: Table = Table {
    name: "neuron_totals",
    grain: "an ablated head, one of its top tokens, and an MLP",
    key: 14,
    setting: Some("neurons.layers"),
    columns: of_ablation![
        PROMPT,
        POSITION,
        NEURON_LAYER,
        TOP,
        EXPERT,
        Column(
            "total_change",
            Float,
            "logits",
            "change of the direct effects of all its neurons, summed, and of experts' biases"
        ),
        Column("positive_change", Float, "logits", "sum of the positive changes"),
        Column("absolute_change", Float, "logits", "sum of the absolute changes"),
        Column("top_percent_change", Float, "logits", "the sum of the 1 % of neurons with the largest change"),
    ],
};

pub const NEURON_CURVES: Table = Table {
    name: "neuron_curves",
    grain: "an ablated head, an MLP, and a rank of its neurons by change, token by token",
    key: 13,
    setting: Some("neurons.layers"),
    columns: of_ablation![
        NEURON_LAYER,
        TOP,
        EXPERT,
        Column("rank", Key, "", "rank among a token's neurons, the most repairing first, from 1"),
        Column("tokens", Count, "", "number of top tokens in the means"),
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
    key: 14,
    setting: None,
    columns: of_ablation![
        Column("subset", Text, "", "which tokens: all, or top, the ablated component's top tokens"),
        Column("repairer", Text, "", "what may repair: head or mlp"),
        REPAIRER_NAME,
        REPAIRER_LAYER,
        REPAIRER_HEAD,
        Column("tokens", Count, "", "number of tokens in the mean"),
        Column("mean_change", Float, "logits", "mean change of its direct effect"),
        Column(
            "standard_error?",
            Float,
            "logits",
            "standard error of the mean, clustered by prompt; null with fewer than two prompts",
        ),
    ],
};

pub const ROUNDING: Table = Table {
    name: "rounding",
    grain: "a column of `ablations`, if projections were not computed in float32",
    key: 1,
    setting: Some("runtime.precision"),
    columns: &[
        Column("measured", Text, "", "a column of `ablations`"),
        Column("precision", Text, "", "runtime.precision"),
        Column("rows", Count, "", "rows of the first shard, which is also computed in float32"),
        Column("root_mean_square", Float, "as the column", "of the column in float32"),
        Column("root_mean_square_error", Float, "as the column", "of the difference from float32"),
        Column("largest_error", Float, "as the column", "largest difference from float32, as an absolute value"),
        Column("tolerance", Float, "", "factor by which the tolerance of checks exceeds that of float32"),
    ],
};
