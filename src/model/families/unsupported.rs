//! Why some well-known models are refused.

/// A reason, and the `model_type`s that have it.
pub struct Unsupported {
    pub model_types: &'static [&'static str],
    pub reason: &'static str,
}

/// Well-known models that no [`super::Family`] describes.
pub const UNSUPPORTED: &[Unsupported] = &[
    Unsupported {
        model_types: &["mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm"],
        reason: "its layers are recurrent (a state-space model): it has no attention heads",
    },
    Unsupported {
        model_types: &[
            "bamba",
            "falcon_h1",
            "granitemoehybrid",
            "jamba",
            "kimi_linear",
            "lfm2",
            "lfm2_moe",
            "minimax",
            "nemotron_h",
            "olmo_hybrid",
            "qwen3_5",
            "qwen3_5_moe",
            "qwen3_next",
            "recurrent_gemma",
            "zamba",
            "zamba2",
        ],
        reason: "some of its layers are recurrent (state-space, convolution or linear attention)",
    },
    Unsupported {
        model_types: &[
            "albert",
            "bert",
            "camembert",
            "deberta",
            "deberta-v2",
            "distilbert",
            "electra",
            "ernie",
            "esm",
            "eurobert",
            "longformer",
            "modernbert",
            "mpnet",
            "nomic_bert",
            "roberta",
            "xlm",
            "xlm-roberta",
            "xlnet",
        ],
        reason: "it is an encoder: positions see the tokens after them",
    },
    Unsupported {
        model_types: &[
            "bart",
            "bigbird_pegasus",
            "blenderbot",
            "encoder-decoder",
            "led",
            "longt5",
            "m2m_100",
            "marian",
            "mbart",
            "mt5",
            "pegasus",
            "prophetnet",
            "switch_transformers",
            "t5",
            "t5gemma",
            "t5gemma2",
            "umt5",
            "whisper",
        ],
        reason: "it is an encoder with a decoder: the decoder reads a second stream",
    },
    Unsupported { model_types: &["ctrl", "xglm"], reason: "its positions are sinusoids" },
    Unsupported {
        model_types: &["openai-gpt"],
        reason: "it normalizes the stream itself after each addition, so that no component adds to the logit",
    },
    Unsupported {
        model_types: &["dbrx", "ernie4_5_moe", "glm4_moe", "granitemoeshared", "jetmoe", "phimoe"],
        reason: "its MLPs are mixtures of experts of a kind that is not supported",
    },
    Unsupported {
        model_types: &["deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4", "glm4_moe_lite", "minicpm3"],
        reason: "its keys and values come from a compressed stream (multi-head latent attention)",
    },
    Unsupported {
        model_types: &["gemma3n", "gemma3n_text", "gemma4", "gemma4_text", "gemma4_unified"],
        reason: "its layers read embeddings of their own and share keys and values with other layers",
    },
    Unsupported {
        model_types: &["llama4", "llama4_text"],
        reason: "its MLPs are mixtures of experts, and its attention is cut into chunks",
    },
    Unsupported {
        model_types: &[
            "idefics",
            "idefics2",
            "idefics3",
            "internvl",
            "llava",
            "llava_next",
            "mistral3",
            "mllama",
            "paligemma",
            "phi4_multimodal",
            "qwen2_5_vl",
            "qwen2_vl",
            "qwen3_vl",
            "smolvlm",
        ],
        reason: "it reads images or sound too",
    },
];

/// Why a `model_type` is refused.
pub fn reason(model_type: &str) -> Option<&'static str> {
    UNSUPPORTED.iter().find(|of| of.model_types.contains(&model_type)).map(|of| of.reason)
}
