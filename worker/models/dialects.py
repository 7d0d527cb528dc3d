"""The common names of what a config.json says, for families that spell it their own way.

Pure dictionaries, so that the memory plan can read any model without torch. A dialect adds the
common names it knows better than `models/config.py`; the family's own names stay beside them.
"""

from collections.abc import Callable, Mapping
from typing import Any

Raw = Mapping[str, Any]


def common_names(raw: Raw) -> dict[str, Any]:
    """The config with common names added, by its first architecture."""
    architecture = str((raw.get("architectures") or [""])[0])
    dialect = _DIALECTS.get(architecture)
    return {**raw, **dialect(raw)} if dialect is not None else dict(raw)


def _tied(raw: Raw) -> dict[str, Any]:
    """Heads are tied where nothing is said: the opposite of Llama's default."""
    return {"tie_word_embeddings": raw.get("tie_word_embeddings", True)}


def _mpt(raw: Raw) -> dict[str, Any]:
    attention = raw.get("attn_config") or {}
    kv_heads = {
        "multiquery_attention": 1,
        "grouped_query_attention": attention.get("kv_n_heads"),
    }
    return {
        **_tied(raw),
        "num_key_value_heads": kv_heads.get(attention.get("attn_type", "")),
        "intermediate_size": int(raw.get("expansion_ratio", 4) * raw["d_model"]),
    }


def _gpt(raw: Raw) -> dict[str, Any]:
    return {**_tied(raw), "intermediate_size": raw.get("n_inner")}


def _gpt_j(raw: Raw) -> dict[str, Any]:
    return {"intermediate_size": raw.get("n_inner")}


def _gpt_neo(raw: Raw) -> dict[str, Any]:
    return {
        **_tied(raw),
        "num_hidden_layers": raw["num_layers"],
        "num_attention_heads": raw["num_heads"],
    }


def _gpt_big_code(raw: Raw) -> dict[str, Any]:
    return {**_gpt(raw), "num_key_value_heads": 1 if raw.get("multi_query", True) else None}


def _gpt_neo_x(raw: Raw) -> dict[str, Any]:
    return {
        "rope_theta": raw.get("rope_theta") or raw.get("rotary_emb_base") or 10000.0,
        "partial_rotary_factor": raw.get("partial_rotary_factor") or raw.get("rotary_pct") or 0.25,
    }


def _phi(raw: Raw) -> dict[str, Any]:
    return {"partial_rotary_factor": raw.get("partial_rotary_factor") or 0.5}


def _glm(raw: Raw) -> dict[str, Any]:
    return {"partial_rotary_factor": raw.get("partial_rotary_factor") or 0.5}


def _gemma3_text_part(raw: Raw) -> dict[str, Any]:
    """The text model's config is nested, and published ones leave out what is as in the first."""
    first = {
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
    }
    return {**first, **_tied(raw), **raw["text_config"], "architectures": raw["architectures"]}


def _deepseek(raw: Raw) -> dict[str, Any]:
    # What the cache holds: one latent a token, for all heads.
    return {
        "num_key_value_heads": 1,
        "head_dim": raw["kv_lora_rank"] + raw["qk_rope_head_dim"],
    }


def _stable_lm(raw: Raw) -> dict[str, Any]:
    return {
        "partial_rotary_factor": raw.get("partial_rotary_factor") or raw.get("rope_pct") or 0.25
    }


def _opt(raw: Raw) -> dict[str, Any]:
    return {**_tied(raw), "intermediate_size": raw["ffn_dim"]}


def _bloom(raw: Raw) -> dict[str, Any]:
    # The published configs hold no limit, or the trained length as `seq_length`.
    return {
        **_tied(raw),
        "hidden_size": raw.get("hidden_size") or raw.get("n_embed"),
        "num_hidden_layers": raw.get("n_layer") or raw.get("num_hidden_layers"),
        "num_attention_heads": raw.get("n_head") or raw.get("num_attention_heads"),
        "max_position_embeddings": raw.get("seq_length") or 2048,
    }


def _cohere(raw: Raw) -> dict[str, Any]:
    return {**_tied(raw), "rope_theta": raw.get("rope_theta") or 500000.0}


def _falcon(raw: Raw) -> dict[str, Any]:
    """The first Falcons' configs (`RWForCausalLM`) count in `n_head`, `n_layer`, `n_head_kv`."""
    num_heads = raw.get("num_attention_heads") or raw.get("n_head")
    kv_heads = raw.get("num_kv_heads") or raw.get("n_head_kv") or num_heads
    if not raw.get("new_decoder_architecture", False) and raw.get("multi_query", True):
        kv_heads = 1
    return {
        **_tied(raw),
        "hidden_size": raw.get("hidden_size") or raw.get("n_embed"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": raw.get("ffn_hidden_size"),
        "max_position_embeddings": raw.get("max_position_embeddings") or 2048,
    }


_DIALECTS: dict[str, Callable[[Raw], dict[str, Any]]] = {
    "MPTForCausalLM": _mpt,
    "MptForCausalLM": _mpt,
    "GPT2LMHeadModel": _gpt,
    "GPTJForCausalLM": _gpt_j,
    "CodeGenForCausalLM": _gpt_j,
    "GPTNeoForCausalLM": _gpt_neo,
    "GPTBigCodeForCausalLM": _gpt_big_code,
    "GPTNeoXForCausalLM": _gpt_neo_x,
    "PhiForCausalLM": _phi,
    "DeepseekV2ForCausalLM": _deepseek,
    "DeepseekV3ForCausalLM": _deepseek,
    "GemmaForCausalLM": _tied,
    "Gemma2ForCausalLM": _tied,
    "Gemma3ForCausalLM": _tied,
    "Gemma3ForConditionalGeneration": _gemma3_text_part,
    "SmolLM3ForCausalLM": _tied,
    "GlmForCausalLM": _glm,
    "Glm4ForCausalLM": _glm,
    "Glm4MoeForCausalLM": _glm,
    "StableLmForCausalLM": _stable_lm,
    "OPTForCausalLM": _opt,
    "BloomForCausalLM": _bloom,
    "FalconForCausalLM": _falcon,
    "RWForCausalLM": _falcon,
    "CohereForCausalLM": _cohere,
    "Cohere2ForCausalLM": _cohere,
    "Starcoder2ForCausalLM": _tied,
}
