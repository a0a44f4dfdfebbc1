//! Tables about additions to the stream (`iterative.prompts`).

use super::Type::{Count, Float, Key, Name, Setting, Text};
use super::{Column, POSITION, PROMPT, Table};

const PROMPTS: Option<&str> = Some("iterative.prompts");
const NAME: Column = Column("name", Name, "", "name of the head, such as L26H2");
const LAYER: Column = Column("layer", Key, "", "block of the head");
const HEAD: Column = Column("head", Key, "", "the head");

pub const SELF_ADDITIONS: Table = Table {
    name: "self_additions",
    grain: "a head, something added to the stream that it reads at one position, and that position",
    key: 7,
    setting: PROMPTS,
    columns: &[
        NAME,
        LAYER,
        HEAD,
        Column(
            "added",
            Text,
            "",
            "own: the head's output; random_head: the output of another head; random_direction: a random vector with the norm of the head's output",
        ),
        Column("multiple", Setting, "", "what the addition was multiplied by"),
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
    key: 7,
    setting: PROMPTS,
    columns: &[
        NAME,
        LAYER,
        HEAD,
        Column(
            "added_at",
            Key,
            "",
            "the block before which the head's clean output was added: any block, also the head's own or an earlier one",
        ),
        Column("multiple", Setting, "", "what the output was multiplied by"),
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
            "logit_change - multiple · direct_effect: the response of the rest of the model; the sum of the next four columns",
        ),
        Column(
            "response_attention",
            Float,
            "logits",
            "change of the direct effects of all heads from that block on, summed",
        ),
        Column("response_mlp", Float, "logits", "change of the direct effects of all MLPs from that block on, summed"),
        Column("response_norm", Float, "logits", "from the change of the final norm's scale: r'·u·(1/s' - 1/s)"),
        Column(
            "response_write_norm",
            Float,
            "logits",
            "from the change of the scales of norms on what parts write, as repair_write_norm in ablations; 0 in models \
             without such norms",
        ),
        Column("own_change?", Float, "logits", "change of the head's own direct effect; null if added after its block"),
    ],
};

pub const HEAD_SIMILARITY: Table = Table {
    name: "head_similarity",
    grain: "a pair of heads",
    key: 6,
    setting: PROMPTS,
    columns: &[
        Column("name", Name, "", "name of the one head, such as L26H2"),
        Column("layer", Key, "", "block of the one head"),
        Column("head", Key, "", "the one head"),
        Column("other_name", Name, "", "name of the other"),
        Column("other_layer", Key, "", "block of the other"),
        Column("other_head", Key, "", "the other"),
        Column("tokens", Count, "", "tokens that the means are over"),
        Column("cosine", Float, "", "mean cosine of the two heads' outputs in the stream"),
        Column("cosine_without_token", Float, "", "the same without the parts along the correct token's direction u"),
    ],
};
