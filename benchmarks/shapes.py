"""Shapes of published models, and the config.json that a directory of such a shape has.

No weights here: `models.py` writes small ones to disk, `engine.py` fills large ones in place;
`limits.py` counts what a step of a shape has to read and to multiply.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Shape:
    architecture: str
    num_layers: int
    hidden_size: int
    intermediate_size: int  # of the MLP, or of one expert
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position: int
    rope_theta: float
    extra: dict[str, Any] = field(default_factory=dict)  # of the config, these values win
    is_gated: bool = True  # the MLP: three matrices, else two
    num_experts: int = 0  # 0: one MLP for all tokens
    top_k: int = 0  # experts of a token

    @property
    def has_qkv_bias(self) -> bool:
        return self.architecture == "Qwen2ForCausalLM"


# `models.py` writes checkpoints of these.
SHAPES = {
    "tiny": Shape("LlamaForCausalLM", 2, 64, 192, 4, 2, 32, 4096, 4096, 1e4),
    # SmolLM2-135M
    "135m": Shape("LlamaForCausalLM", 30, 576, 1536, 9, 3, 64, 49152, 8192, 1e5),
    # Qwen2.5-0.5B
    "0.5b": Shape("Qwen2ForCausalLM", 24, 896, 4864, 14, 2, 64, 151936, 32768, 1e6),
    # Llama-3.2-1B
    "1b": Shape("LlamaForCausalLM", 16, 2048, 8192, 32, 8, 64, 128256, 131072, 5e5),
}

_LLAMA_8B_EXTRA = {
    "tie_word_embeddings": False,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
_MIXTURE_EXTRA = {
    "tie_word_embeddings": False,
    "intermediate_size": 6144,  # of layers without experts, of which there are none
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}

# For cards: only ever in memory.
LARGE_SHAPES = {
    # Llama-3.1-8B
    "llama-8b": Shape(
        "LlamaForCausalLM", 32, 4096, 14336, 32, 8, 128, 128256, 131072, 5e5, _LLAMA_8B_EXTRA
    ),
    # MPT-7B, with the positions of its StoryWriter: ALiBi needs no parameters for them
    "mpt-7b": Shape(
        "MPTForCausalLM", 32, 4096, 16384, 32, 32, 128, 50432, 65536, 1e4, is_gated=False
    ),
    # Qwen3-30B-A3B
    "30b-a3b": Shape(
        "Qwen3MoeForCausalLM",
        48,
        2048,
        768,
        32,
        4,
        128,
        151936,
        40960,
        1e6,
        _MIXTURE_EXTRA,
        num_experts=128,
        top_k=8,
    ),
}

_MODEL_TYPES = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3MoeForCausalLM": "qwen3_moe",
}


def hf_config(shape: Shape) -> dict[str, Any]:
    """A config.json in the dialect of the shape's family."""
    if shape.architecture == "MPTForCausalLM":
        return _mpt_config(shape) | shape.extra
    config = {
        "architectures": [shape.architecture],
        "model_type": _MODEL_TYPES[shape.architecture],
        "num_hidden_layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.max_position,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        **_special_tokens(),
    }
    if shape.num_experts:
        config |= {
            "num_experts": shape.num_experts,
            "num_experts_per_tok": shape.top_k,
            "moe_intermediate_size": shape.intermediate_size,
        }
    return config | shape.extra


def _mpt_config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": [shape.architecture],
        "model_type": "mpt",
        "n_layers": shape.num_layers,
        "d_model": shape.hidden_size,
        "n_heads": shape.num_heads,
        "expansion_ratio": shape.intermediate_size // shape.hidden_size,
        "max_seq_len": shape.max_position,
        "vocab_size": shape.vocab_size,
        "no_bias": True,
        "attn_config": {"alibi": True, "attn_impl": "torch"},
        **_special_tokens(),
    }


def _special_tokens() -> dict[str, Any]:
    return {
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
    }
