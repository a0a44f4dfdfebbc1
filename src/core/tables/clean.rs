//! Tables about the model, its prompts and the clean pass.

use super::Type::{Count, Float, Key, Name, Text};
use super::ablated::{COMPONENT, HEAD, LAYER, NAME};
use super::{Column, POSITION, PROMPT, Table};

pub const MODEL: Table = Table {
    name: "model",
    grain: "the run's model",
    key: 1,
    setting: None,
    columns: &[
        Column("name", Text, "", "short name of the model"),
        Column("architecture", Text, "", "the checkpoint's model_type"),
        Column("layers", Count, "", "blocks"),
        Column("heads", Count, "", "attention heads in a block"),
        Column("d_model", Count, "", "width of the residual stream"),
        Column("d_mlp", Count, "", "neurons in an MLP"),
        Column("vocab", Count, "", "rows of the unembedding"),
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
    setting: None,
    columns: &[
        PROMPT,
        POSITION,
        Column("token", Key, "", "token id at this position"),
        Column("text", Text, "", "the token as text; bytes that are not a complete character appear as U+FFFD"),
        Column("next_token?", Key, "", "id of the correct token, whose logit is measured; null at the last position"),
        Column(
            "document?",
            Key,
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
    setting: Some("corpus.mode = \"prompts\""),
    columns: &[
        PROMPT,
        Column("position", Key, "", "the position whose logit is measured"),
        Column("answer", Key, "", "the token whose logit is measured"),
        Column("wrong?", Key, "", "the token whose logit is subtracted, if any"),
    ],
};

pub const PAIRS: Table = Table {
    name: "pairs",
    grain: "a resample sample and a prompt",
    key: 2,
    setting: Some("ablation.kinds = [\"resample\"]"),
    columns: &[
        Column("sample", Key, "", "number of the pairing, from 0"),
        PROMPT,
        Column("partner", Key, "", "the prompt whose z replaces this prompt's"),
    ],
};

pub const CLEAN: Table = Table {
    name: "clean",
    grain: "a prompt position that has a correct next token",
    key: 2,
    setting: None,
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
    key: 6,
    setting: None,
    columns: &[
        PROMPT,
        POSITION,
        Column(
            "component",
            Text,
            "",
            "what wrote: embed, head, attention_bias (b_O', which belongs to no head), mlp, or constant (the part of the \
             logit that no component writes)",
        ),
        Column("name", Name, "", "its name: EMBED, L26H2, BIAS26, MLP26 or CONSTANT"),
        Column("layer?", Key, "", "block; null for embed and constant"),
        Column("head?", Key, "", "head; null unless the component is a head"),
        Column("direct_effect", Float, "logits", "the component's output · u / norm_scale"),
    ],
};

pub const TOP_TOKENS: Table = Table {
    name: "top_tokens",
    grain: "a component that is ablated and one of its top tokens, on which its direct effect is highest",
    key: 5,
    setting: None,
    columns: &[
        COMPONENT,
        NAME,
        LAYER,
        HEAD,
        Column("rank", Key, "", "rank of the token by direct effect, from 1; ties in order of prompt, position"),
        PROMPT,
        POSITION,
        Column("direct_effect", Float, "logits", "direct effect of the component, clean"),
    ],
};
