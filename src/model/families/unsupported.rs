//! Why some well-known models are refused.

/// What a `model_type` has that no [`super::Family`] describes.
pub fn reason(model_type: &str) -> Option<&'static str> {
    Some(match model_type {
        "mamba" | "mamba2" | "falcon_mamba" | "rwkv" | "xlstm" => {
            "its layers are recurrent (a state-space model): it has no attention heads"
        }
        "bamba" | "falcon_h1" | "granitemoehybrid" | "jamba" | "kimi_linear" | "lfm2" | "lfm2_moe" | "minimax"
        | "nemotron_h" | "olmo_hybrid" | "qwen3_5" | "qwen3_5_moe" | "qwen3_next" | "recurrent_gemma" | "zamba"
        | "zamba2" => "some of its layers are recurrent (state-space, convolution or linear attention)",
        "albert" | "bert" | "camembert" | "deberta" | "deberta-v2" | "distilbert" | "electra" | "ernie" | "esm"
        | "eurobert" | "longformer" | "modernbert" | "mpnet" | "nomic_bert" | "roberta" | "xlm" | "xlm-roberta"
        | "xlnet" => "it is an encoder: positions see the tokens after them",
        "bart"
        | "bigbird_pegasus"
        | "blenderbot"
        | "encoder-decoder"
        | "led"
        | "longt5"
        | "m2m_100"
        | "marian"
        | "mbart"
        | "mt5"
        | "pegasus"
        | "prophetnet"
        | "switch_transformers"
        | "t5"
        | "t5gemma"
        | "t5gemma2"
        | "umt5"
        | "whisper" => "it is an encoder with a decoder: the decoder reads a second stream",
        "ctrl" | "xglm" => "its positions are sinusoids",
        "openai-gpt" => "it normalizes the stream itself after each addition, so that no component adds to the logit",
        "dbrx" | "ernie4_5_moe" | "glm4_moe" | "granitemoe" | "granitemoeshared" | "jetmoe" | "mixtral" | "olmoe"
        | "phimoe" | "qwen2_moe" | "qwen3_moe" => "its MLPs are mixtures of experts",
        "gpt_oss" => "its MLPs are mixtures of experts, and its attention has sinks",
        "deepseek_v2" | "deepseek_v3" | "deepseek_v32" | "deepseek_v4" | "glm4_moe_lite" | "minicpm3" => {
            "its keys and values come from a compressed stream (multi-head latent attention)"
        }
        "gemma3n" | "gemma4" | "gemma4_text" | "gemma4_unified" => {
            "its layers read embeddings of their own, share keys and values with other layers, and normalize what they \
             write"
        }
        "llama4" | "llama4_text" => "its MLPs are mixtures of experts, and its attention is cut into chunks",
        "cohere2" => "only its layers with a window have positions",
        "idefics" | "idefics2" | "idefics3" | "internvl" | "llava" | "llava_next" | "mistral3" | "mllama"
        | "paligemma" | "phi4_multimodal" | "qwen2_5_vl" | "qwen2_vl" | "qwen3_vl" | "smolvlm" => {
            "it reads images or sound too"
        }
        _ => return None,
    })
}
