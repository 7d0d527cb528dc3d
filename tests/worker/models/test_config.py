"""Reading model directories: spellings, defaults and the errors of broken ones."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from worker.errors import CheckpointError
from worker.models.config import load_model_config
from worker.models.registry import find_family

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}


def write(path: Path, generation: dict[str, Any] | None = None, **overrides: Any) -> str:
    config = {k: v for k, v in {**LLAMA, **overrides}.items() if v is not ...}
    (path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return str(path)


def test_config_fills_in_what_follows_from_the_rest(tmp_path: Path) -> None:
    config = load_model_config(write(tmp_path))
    assert (config.num_kv_heads, config.head_dim) == (4, 8)
    assert config.eos_token_ids == (2,)
    assert config.torch_dtype == "bfloat16"
    assert config.max_position == config.max_extended_position == 128


def test_gpt_style_names_are_understood(tmp_path: Path) -> None:
    renamed: dict[str, Any] = {"n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 64}
    missing: dict[str, Any] = dict.fromkeys(
        ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"), ...
    )
    config = load_model_config(write(tmp_path, **missing, **renamed))
    assert (config.hidden_size, config.num_layers, config.num_heads) == (48, 3, 6)
    assert config.max_position == 64


def test_generation_config_overrides_end_of_sequence(tmp_path: Path) -> None:
    config = load_model_config(write(tmp_path, generation={"eos_token_id": [7, 9]}))
    assert config.eos_token_ids == (7, 9)


def test_new_dtype_spelling_wins(tmp_path: Path) -> None:
    config = load_model_config(write(tmp_path, dtype="float16"))
    assert config.torch_dtype == "float16"


@pytest.mark.parametrize(
    ("scaling", "limits"),
    [
        ({"rope_type": "linear", "factor": 4.0}, (128, 512)),
        ({"type": "dynamic", "factor": 2.0}, (128, 256)),
        ({"rope_type": "yarn", "factor": 4.0}, (512, 512)),
        (
            {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64},
            (128, 128),
        ),
        ({"rope_type": "llama3", "factor": 8.0}, (128, 128)),
    ],
)
def test_rope_scaling_sets_the_limits(
    tmp_path: Path, scaling: dict[str, Any], limits: tuple[int, int]
) -> None:
    config = load_model_config(write(tmp_path, rope_scaling=scaling))
    assert (config.max_position, config.max_extended_position) == limits


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"vocab_size": ...}, "no 'vocab_size'"),
        ({"hidden_size": ...}, "no 'hidden_size'"),
        ({"num_hidden_layers": 0}, "`num_hidden_layers` is 0"),
        ({"architectures": ...}, "no `architectures`"),
        ({"torch_dtype": "int8"}, "dtype 'int8'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq-quantized"),
    ],
)
def test_broken_config_is_refused(tmp_path: Path, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_model_config(write(tmp_path, **overrides))


def test_directory_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_model_config(str(tmp_path))


def test_config_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_model_config(str(tmp_path))


def test_unknown_architecture_names_the_supported_ones(tmp_path: Path) -> None:
    config = load_model_config(write(tmp_path, architectures=["OracleForCausalLM"]))
    with pytest.raises(CheckpointError, match=r"OracleForCausalLM .* LlamaForCausalLM"):
        find_family(config)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "spiral"}, "'spiral' is not supported"),
        ({"rope_type": "llama3", "factor": 8.0}, "lacks 'low_freq_factor'"),
        (
            {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]},
            "short_factor has 1 values, not 4",
        ),
    ],
)
def test_bad_rope_scaling_is_refused(tmp_path: Path, scaling: dict[str, Any], message: str) -> None:
    config = load_model_config(write(tmp_path, rope_scaling=scaling))
    with pytest.raises(CheckpointError, match=message):
        find_family(config).build_spec(config)


def test_unknown_activation_is_refused(tmp_path: Path) -> None:
    config = load_model_config(write(tmp_path, hidden_act="softsign"))
    with pytest.raises(CheckpointError, match="softsign"):
        find_family(config).build_spec(config)


def test_config_and_memory_plan_load_no_torch() -> None:
    code = "import sys, worker.models.config, worker.memory_plan; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr
