"""MiMo (`MiMoForCausalLM`), which transformers does not have: Qwen2 with layers that predict later tokens, which the
causal model does not run. Its published code is in its repositories (`modeling_mimo.py`).
"""

import torch
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2MLP, Qwen2RMSNorm


@strict
class MiMoConfig(Qwen2Config):
    model_type = "mimo"

    num_nextn_predict_layers: int = 0


class MultiTokenPrediction(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        for norm in ["input", "post_attention", "token", "hidden", "final"]:
            self.add_module(f"{norm}_layernorm", Qwen2RMSNorm(width, eps))
        self.input_proj = torch.nn.Linear(2 * width, width, bias=False)
        self.self_attn = Qwen2Attention(config, layer_idx=0)
        self.mlp = Qwen2MLP(config)


class MiMoForCausalLM(Qwen2ForCausalLM):
    config_class = MiMoConfig

    def __init__(self, config):
        super().__init__(config)
        self.model.mtp_layers = torch.nn.ModuleList(
            MultiTokenPrediction(config) for _ in range(config.num_nextn_predict_layers))
        self.post_init()


AutoConfig.register("mimo", MiMoConfig)
AutoModelForCausalLM.register(MiMoConfig, MiMoForCausalLM)
