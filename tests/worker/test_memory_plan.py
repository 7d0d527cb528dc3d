"""The plan's arithmetic against sizes counted by hand, and what is said when something does not
fit.
"""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from worker import memory_plan
from worker.config import RunnerConfig
from worker.errors import InvalidRequest, MemoryPlanError
from worker.memory_plan import plan_memory, resolve_dtype
from worker.models.config import ModelConfig, load_model_config

GIB = 1 << 30
LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTER, VOCAB = 3, 64, 8, 4, 8, 128, 1000


def make_model(path: Path, max_position: int = 1024) -> ModelConfig:
    """A directory whose safetensors file has a header and a hole where the data would be."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INTER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": max_position,
        "torch_dtype": "bfloat16",
    }
    (path / "config.json").write_text(json.dumps(config))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensor_shapes().items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (path / "model.safetensors").open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.truncate(8 + len(text) + end)
    return load_model_config(str(path))


def tensor_shapes() -> dict[str, list[int]]:
    shapes = {"model.embed_tokens.weight": [VOCAB, HIDDEN], "model.norm.weight": [HIDDEN]}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        shapes[prefix + "input_layernorm.weight"] = [HIDDEN]
        shapes[prefix + "self_attn.q_proj.weight"] = [HEADS * HEAD_DIM, HIDDEN]
        shapes[prefix + "self_attn.k_proj.weight"] = [KV_HEADS * HEAD_DIM, HIDDEN]
        shapes[prefix + "self_attn.v_proj.weight"] = [KV_HEADS * HEAD_DIM, HIDDEN]
        shapes[prefix + "mlp.up_proj.weight"] = [INTER, HIDDEN]
    return shapes


KV_ELEMENTS = LAYERS * 2 * KV_HEADS * HEAD_DIM * HIDDEN
OTHER_MATRIX_ELEMENTS = VOCAB * HIDDEN + LAYERS * (HEADS * HEAD_DIM + INTER) * HIDDEN
VECTOR_ELEMENTS = (1 + LAYERS) * HIDDEN


def config(path: Path, **overrides: Any) -> RunnerConfig:
    return RunnerConfig(str(path), **{"dtype": "bfloat16", "max_num_seqs": 8, **overrides})


@pytest.mark.parametrize(("tp_size", "kv_heads_per_rank"), [(1, 4), (2, 2), (4, 1), (8, 1)])
def test_weights_and_blocks_of_a_rank(tmp_path: Path, tp_size: int, kv_heads_per_rank: int) -> None:
    plan = plan_memory(make_model(tmp_path), config(tmp_path), tp_size, "cpu", 8 * GIB)
    kv_elements = KV_ELEMENTS * kv_heads_per_rank // KV_HEADS
    elements = VECTOR_ELEMENTS + OTHER_MATRIX_ELEMENTS // tp_size + kv_elements
    assert plan.weight_bytes == 2 * elements
    assert plan.block_bytes == 2 * LAYERS * 16 * kv_heads_per_rank * HEAD_DIM * 2


def test_cpu_cache_holds_every_sequence_at_full_length_and_no_more(tmp_path: Path) -> None:
    plan = plan_memory(make_model(tmp_path), config(tmp_path), 1, "cpu", 8 * GIB)
    assert plan.num_blocks == 8 * 1024 // 16
    assert plan.max_concurrency == 8.0
    assert plan.bound == "max_num_seqs x max_model_len"


def test_cpu_caches_of_all_ranks_stay_within_4_gib(tmp_path: Path) -> None:
    big = config(tmp_path, max_num_seqs=100_000)
    for tp_size in (1, 2):
        plan = plan_memory(make_model(tmp_path), big, tp_size, "cpu", 1 << 50)
        assert tp_size * plan.kv_cache_bytes <= 4 * GIB < tp_size * plan.kv_cache_bytes + (1 << 20)


def test_scarce_memory_is_shared_by_the_ranks_of_a_host(tmp_path: Path) -> None:
    model, scarce = (
        make_model(tmp_path),
        config(tmp_path, max_num_batched_tokens=64, max_num_seqs=64),
    )
    available = 32 << 20
    plan = plan_memory(model, scarce, 2, "cpu", available)
    total = plan.weight_bytes + plan.activation_bytes + plan.kv_cache_bytes
    assert plan.bound == "memory_utilization"
    assert plan.budget_bytes == int(available // 2 * 0.9)
    assert plan.budget_bytes - plan.block_bytes < total <= plan.budget_bytes


def test_gpu_cache_takes_what_is_left(tmp_path: Path) -> None:
    plan = plan_memory(make_model(tmp_path), config(tmp_path), 2, "cuda", 8 * GIB)
    used = plan.weight_bytes + plan.activation_bytes + plan.kv_cache_bytes
    assert 0.9 * 8 * GIB - plan.block_bytes < used <= 0.9 * 8 * GIB


def test_explicit_sizes_win(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    assert plan_memory(model, config(tmp_path, num_blocks=77), 1, "cpu", GIB).num_blocks == 77
    by_bytes = plan_memory(model, config(tmp_path, kv_cache_bytes=1 << 20), 1, "cpu", GIB)
    assert by_bytes.num_blocks == (1 << 20) // by_bytes.block_bytes


def test_unasked_length_shrinks_to_the_cache(tmp_path: Path) -> None:
    model = make_model(tmp_path, max_position=1 << 17)
    plan = plan_memory(model, config(tmp_path, num_blocks=40), 1, "cpu", 8 * GIB)
    assert plan.max_model_len == 640


def test_asked_length_that_does_not_fit_is_refused_with_the_plan(tmp_path: Path) -> None:
    asked = config(tmp_path, num_blocks=10, max_model_len=1000)
    with pytest.raises(MemoryPlanError) as error:
        plan_memory(make_model(tmp_path), asked, 1, "cpu", GIB)
    assert "less than one sequence of 1000 tokens" in str(error.value)
    assert "KV cache" in str(error.value) and "10 blocks of 16 tokens" in str(error.value)


@pytest.mark.parametrize("available", [0, 1 << 18])
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, available: int) -> None:
    with pytest.raises(MemoryPlanError, match="the model does not fit"):
        plan_memory(make_model(tmp_path), config(tmp_path), 1, "cuda", available)


def test_explicit_cache_beyond_the_host_is_refused(tmp_path: Path) -> None:
    huge = config(tmp_path, kv_cache_bytes=64 * GIB)
    with pytest.raises(MemoryPlanError, match="are free"):
        plan_memory(make_model(tmp_path), huge, 1, "cpu", 8 * GIB)


def test_length_beyond_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="max_model_len=1025") as error:
        plan_memory(make_model(tmp_path), config(tmp_path, max_model_len=1025), 1, "cpu", GIB)
    assert error.value.field == "max_model_len"


def test_heads_that_cannot_be_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="8 attention heads cannot be split over 3 ranks"):
        plan_memory(make_model(tmp_path), config(tmp_path), 3, "cpu", GIB)


def test_description_names_every_part(tmp_path: Path) -> None:
    lines = plan_memory(make_model(tmp_path), config(tmp_path), 2, "cpu", 8 * GIB).describe()
    text = "\n".join(lines)
    for part in ("bfloat16 on cpu, 2 ranks", "weights", "activations", "512 blocks of 16 tokens"):
        assert part in text
    assert "8.0 sequences of 1024 tokens" in text


def test_explicit_dtype_wins_and_unknown_is_refused(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    assert resolve_dtype(model, config(tmp_path, dtype="float16"), "cpu") == "float16"
    assert resolve_dtype(model, config(tmp_path, dtype="auto"), "cuda") == "bfloat16"
    with pytest.raises(InvalidRequest, match="int4"):
        resolve_dtype(model, config(tmp_path, dtype="int4"), "cpu")


@pytest.mark.parametrize(("has_amx", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_small_model_on_a_cpu_without_matrix_units_runs_in_fp32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_amx: bool, dtype: str
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags : avx512f amx_bf16" if has_amx else "flags : avx512f")
    monkeypatch.setattr(memory_plan, "_CPUINFO", cpuinfo)
    on_torch = config(tmp_path, dtype="auto", native_kernels=False)
    assert resolve_dtype(make_model(tmp_path), on_torch, "cpu") == dtype


@pytest.mark.parametrize(("is_there", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_model_in_bfloat16_keeps_its_type_where_there_are_kernels_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool, dtype: str
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags : avx512f")
    monkeypatch.setattr(memory_plan, "_CPUINFO", cpuinfo)
    monkeypatch.setattr(memory_plan, "can_have_library", lambda: is_there)
    assert resolve_dtype(make_model(tmp_path), config(tmp_path, dtype="auto"), "cpu") == dtype
