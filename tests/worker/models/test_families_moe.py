"""Mixtures of experts against transformers, in their published forms made tiny."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.worker.models.family_parity import (
    assert_expert_parallel_tokens,
    assert_parity,
    bfloat16_similarity,
    loaded_weight_bytes,
)
from tests.worker.models.harness import TINY, llama_config, make_checkpoint, make_runner
from tests.worker.simulated_group import run_ranks
from worker.config import RunnerConfig
from worker.errors import CheckpointError, InvalidRequest
from worker.models.config import load_model_config
from worker.models.deployed_spec import deployed_spec
from worker.parallel.group import TPGroup

YARN_MSCALE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "mscale": 0.7,
    "mscale_all_dim": 1.2,
}
DEEPSEEK = {
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "q_lora_rank": 20,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
}
# name: (transformers' config class, what differs from TINY)
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "Mixtral": ("MixtralConfig", {"num_local_experts": 6}),
    "Mixtral with a window": ("MixtralConfig", {"num_local_experts": 6, "sliding_window": 21}),
    "Qwen2 MoE": (
        "Qwen2MoeConfig",
        {
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 20,
            "shared_expert_intermediate_size": 36,
            "num_hidden_layers": 4,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
        },
    ),
    "Qwen3 MoE": (
        "Qwen3MoeConfig",
        {
            "head_dim": 16,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 20,
            "norm_topk_prob": True,
        },
    ),
    "OLMoE": (
        "OlmoeConfig",
        {"num_experts": 8, "num_experts_per_tok": 3, "num_key_value_heads": 4},
    ),
    "DeepSeek V2 Lite": ("DeepseekV2Config", {**DEEPSEEK, "q_lora_rank": None}),
    "DeepSeek V2": (
        "DeepseekV2Config",
        {
            **DEEPSEEK,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 3.0,
            "rope_parameters": YARN_MSCALE,
        },
    ),
    "DeepSeek V3": (
        "DeepseekV3Config",
        {**DEEPSEEK, "n_group": 4, "topk_group": 2, "rope_parameters": YARN_MSCALE},
    ),
    "GLM-4.5": (
        "Glm4MoeConfig",
        {
            "head_dim": 16,
            "use_qk_norm": True,
            "attention_bias": True,
            "num_hidden_layers": 3,
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 20,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "routed_scaling_factor": 1.5,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    "gpt-oss": (
        "GptOssConfig",
        {
            "head_dim": 16,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "sliding_window": 21,
            "swiglu_limit": 1.5,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 150000.0,
                "factor": 4.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 64,
            },
        },
    ),
}


def make_config(row: str) -> Any:
    import transformers

    name, options = ROWS[row]
    architectures = [name.replace("Config", "ForCausalLM")]
    return getattr(transformers, name)(
        **{**TINY, "architectures": architectures, "eos_token_id": 1, "pad_token_id": 0, **options}
    )


@pytest.mark.parametrize("row", ROWS)
def test_family_matches_transformers(tmp_path: Path, row: str) -> None:
    assert_parity(tmp_path, make_config(row), tp_sizes=(1, 2, 4))


EXPERT_PARALLEL = (
    "Mixtral",
    "Qwen2 MoE",
    "Qwen3 MoE",
    "OLMoE",
    "DeepSeek V2",
    "DeepSeek V3",
    "GLM-4.5",
    "gpt-oss",
)


@pytest.mark.parametrize("row", EXPERT_PARALLEL)
def test_whole_experts_on_ranks_match_transformers(tmp_path: Path, row: str) -> None:
    """Six experts on four ranks, too: counts need not be even."""
    model = make_checkpoint(tmp_path, make_config(row))
    assert_expert_parallel_tokens(tmp_path, model, tp_sizes=(1, 2, 4))


@pytest.mark.parametrize("row", ["Mixtral", "gpt-oss"])
def test_plan_counts_the_experts_of_the_fullest_rank(tmp_path: Path, row: str) -> None:
    make_checkpoint(tmp_path, make_config(row))

    def run(tp: TPGroup) -> tuple[int, int]:
        runner = make_runner(tmp_path, tp, enable_expert_parallel=True, native_kernels=False)
        return loaded_weight_bytes(runner), runner.memory_plan.weight_bytes

    ranks = run_ranks(4, run)
    loaded = [own for own, _ in ranks]
    assert len({planned for _, planned in ranks}) == 1
    assert min(loaded) < max(loaded) <= ranks[0][1] < 1.1 * max(loaded)


def test_expert_parallelism_without_experts_is_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())
    with pytest.raises(InvalidRequest, match="LlamaForCausalLM has no experts"):
        make_runner(tmp_path, enable_expert_parallel=True)


def test_fewer_experts_than_ranks_are_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, make_config("Mixtral"))
    config = RunnerConfig(str(tmp_path), enable_expert_parallel=True)
    with pytest.raises(InvalidRequest, match="6 experts cannot be spread over 8 ranks"):
        deployed_spec(load_model_config(str(tmp_path)), config, 8)


@pytest.mark.parametrize("row", ["Qwen2 MoE", "OLMoE", "gpt-oss", "DeepSeek V3", "GLM-4.5"])
def test_bfloat16_stays_close_to_float32(tmp_path: Path, row: str) -> None:
    assert bfloat16_similarity(tmp_path, make_config(row)) > 0.98


@pytest.mark.parametrize(
    ("row", "option", "value", "message"),
    [
        ("gpt-oss", "quantization_config", {"quant_method": "gptq"}, "gptq-quantized"),
        ("gpt-oss", "num_local_experts", 5, r"has shape \[6, .*, not \[5, "),
        ("Mixtral", "num_local_experts", 5, r"left over: .*experts\.5\.w1\.weight"),
        ("Qwen3 MoE", "moe_intermediate_size", 24, r"has shape \[32, 20\], not \[32, 24\]"),
        ("OLMoE", "clip_qkv", 8.0, "clip_qkv is not supported"),
        ("DeepSeek V3", "attention_bias", True, "latent attention with biases"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, row: str, option: str, value: Any, message: str
) -> None:
    make_checkpoint(tmp_path, make_config(row))
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), option: value}))
    with pytest.raises(CheckpointError, match=message):
        make_runner(tmp_path)


def test_layer_that_drafts_tokens_is_left_out(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, make_config("DeepSeek V3"))
    file = tmp_path / "model.safetensors"
    drafting = {
        f"model.layers.3.{name}.weight": torch.ones(500, 2) for name in ("enorm", "eh_proj")
    }
    save_file(load_file(file) | drafting, file)
    runner = make_runner(tmp_path, native_kernels=False)
    assert runner.memory_plan.weight_bytes == loaded_weight_bytes(runner)
