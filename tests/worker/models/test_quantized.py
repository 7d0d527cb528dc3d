"""Quantized checkpoints: unpacked as transformers unpacks them, whole and by slices of ranks."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.worker.models.family_parity import (
    assert_checkpoint_parity,
    assert_expert_parallel_tokens,
)
from tests.worker.models.harness import llama_config, make_checkpoint, make_runner
from tests.worker.models.test_families_moe import make_config
from worker.errors import CheckpointError
from worker.models.checkpoint import read_tensor_entries
from worker.models.quantization import Quantization, read_quantization
from worker.models.tensor_entry import MXFP4, ScaledFloat8, TensorEntry
from worker.models.unpacking import Index, read_values

DEEPSEEK_FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [8, 16]}
FILE = Path("model.safetensors")


def compressed(strategy: str, num_bits: int = 8, kind: str = "float") -> dict[str, Any]:
    weights = {"num_bits": num_bits, "type": kind, "strategy": strategy, "symmetric": True}
    if strategy == "block":
        weights["block_structure"] = [8, 16]
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }


# --- the arithmetic -------------------------------------------------------------------------------


def reader(tensors: dict[str, Tensor]) -> Any:
    def read(entry: TensorEntry, index: Index) -> Tensor:
        return tensors[entry.name][index]

    return read


def entry_of(name: str, tensor: Tensor) -> TensorEntry:
    return TensorEntry(name, FILE, tuple(tensor.shape))


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu])
def test_block_scaled_floats_equal_transformers(scale_dtype: torch.dtype) -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    generator = torch.Generator().manual_seed(1)
    numbers = (torch.randn(48, 64, generator=generator) * 50).to(torch.float8_e4m3fn)
    scales = torch.rand(6, 4, generator=generator).add(0.1).to(scale_dtype)
    expected = Fp8Dequantize(None)._dequantize_one(numbers, scales, torch.bfloat16)
    packing = ScaledFloat8(entry_of("n", numbers), entry_of("s", scales), (8, 16))
    entry = TensorEntry("w", FILE, (48, 64), "", packing)
    for rows, columns in [((0, 48), (0, 64)), ((5, 29), (0, 64)), ((0, 48), (17, 40))]:
        index = (slice(*rows), slice(*columns))
        found = read_values(entry, index, reader({"n": numbers, "s": scales}))
        assert torch.equal(found.bfloat16(), expected[index])


@pytest.mark.parametrize("shape", [(21, 40), (3, 128), (300, 130)])
def test_last_blocks_may_be_cut_short(shape: tuple[int, int]) -> None:
    """As DeepSeek's kv_a_proj_with_mqa has them: 576 rows in blocks of 128."""
    generator = torch.Generator().manual_seed(2)
    numbers = torch.randn(shape, generator=generator).to(torch.float8_e4m3fn)
    scales = torch.rand(-(-shape[0] // 128), -(-shape[1] // 128), generator=generator)
    packing = ScaledFloat8(entry_of("n", numbers), entry_of("s", scales), (128, 128))
    index = (slice(0, shape[0]), slice(1, shape[1]))
    found = read_values(
        TensorEntry("w", FILE, shape, "", packing), index, reader({"n": numbers, "s": scales})
    )
    wide = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)[: shape[0], : shape[1]]
    assert torch.equal(found, (numbers.float() * wide)[index])


def test_four_bit_floats_equal_transformers() -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(3)
    blocks = torch.randint(0, 256, (3, 10, 4, 16), dtype=torch.uint8, generator=generator)
    exponents = torch.randint(110, 140, (3, 10, 4), dtype=torch.uint8, generator=generator)
    expected = convert_moe_packed_tensors(blocks, exponents, dtype=torch.bfloat16)
    assert tuple(expected.shape) == (3, 128, 10)
    packing = MXFP4(entry_of("b", blocks), entry_of("e", exponents))
    entry = TensorEntry("w", FILE, (3, 128, 10), "", packing)
    for columns, rows in [((0, 128), (0, 10)), ((0, 128), (3, 7)), ((33, 77), (0, 10))]:
        index = (1, slice(*columns), slice(*rows))
        found = read_values(entry, index, reader({"b": blocks, "e": exponents}))
        assert torch.equal(found.bfloat16(), expected[index])


# --- whole models ---------------------------------------------------------------------------------


def rewrite(path: Path, quantization: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    save_file(tensors, path / "model.safetensors")
    file = path / "config.json"
    file.write_text(
        json.dumps({**json.loads(file.read_text()), "quantization_config": quantization})
    )


def quantize_float8(
    path: Path, model: Any, quantization: dict[str, Any], scale: str, block: tuple[int, int]
) -> None:
    """In place, the projections of layers; the model gets what they unpack to."""
    packed, values = {}, {}
    for name, tensor in load_file(path / "model.safetensors").items():
        is_projection = name.endswith("_proj.weight")
        if not is_projection:
            packed[name] = tensor
            continue
        rows, columns = tensor.shape
        size = (min(block[0], rows), min(block[1], columns))
        shape = (-(-rows // size[0]), -(-columns // size[1]))
        scales = torch.rand(shape, generator=torch.Generator().manual_seed(rows)) / 40 + 0.01
        wide = scales.repeat_interleave(size[0], 0).repeat_interleave(size[1], 1)[:rows, :columns]
        numbers = (tensor / wide).to(torch.float8_e4m3fn)
        packed[name] = numbers
        packed[name + scale] = scales
        packed[name.removesuffix("weight") + "input_scale"] = torch.ones(1)
        values[name] = numbers.float() * wide
    rewrite(path, quantization, packed)
    set_values(model, values)


def set_values(model: Any, values: dict[str, Tensor]) -> None:
    """By transformers' own loading of the names that checkpoints have."""
    whole = load_whole(model)
    with torch.no_grad():
        for name, tensor in values.items():
            whole[name].copy_(tensor)


def load_whole(model: Any) -> dict[str, Tensor]:
    """The model's parameters by the checkpoint's names; experts as views of their stacks."""
    named: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if name.endswith("experts.gate_up_proj"):
            size = parameter.shape[1] // 2
            for i, matrix in enumerate(parameter.data):
                named[name.replace("gate_up_proj", f"{i}.gate_proj.weight")] = matrix[:size]
                named[name.replace("gate_up_proj", f"{i}.up_proj.weight")] = matrix[size:]
        elif name.endswith("experts.down_proj"):
            for i, matrix in enumerate(parameter.data):
                named[name.replace("down_proj", f"{i}.down_proj.weight")] = matrix
        else:
            named[name] = parameter.data
    return named


FLOAT8_FORMS: dict[str, tuple[dict[str, Any], str, tuple[int, int]]] = {
    "FP8, a scale a block": (DEEPSEEK_FP8, "_scale_inv", (8, 16)),
    "compressed-tensors, FP8, a scale a block": (compressed("block"), "_scale", (8, 16)),
    "compressed-tensors, FP8, a scale a row": (compressed("channel"), "_scale", (1, 10_000)),
    "compressed-tensors, FP8, a scale a tensor": (compressed("tensor"), "_scale", (10_000, 10_000)),
}


@pytest.mark.parametrize("form", FLOAT8_FORMS)
def test_llama_of_eight_bits_matches_transformers(tmp_path: Path, form: str) -> None:
    model = make_checkpoint(tmp_path, llama_config())
    quantize_float8(tmp_path, model, *FLOAT8_FORMS[form])
    assert_checkpoint_parity(tmp_path, model, (1, 2))


@pytest.mark.parametrize("row", ["DeepSeek V3", "Qwen3 MoE"], ids=lambda row: f"{row}, FP8")
def test_experts_of_eight_bits_match_transformers(tmp_path: Path, row: str) -> None:
    model = make_checkpoint(tmp_path, make_config(row))
    quantize_float8(tmp_path, model, *FLOAT8_FORMS["FP8, a scale a block"])
    assert_checkpoint_parity(tmp_path, model, (1, 2, 4))
    assert_expert_parallel_tokens(tmp_path, model, (2,))


def quantize_mxfp4(path: Path, model: Any) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    packed, parameters = {}, dict(model.named_parameters())
    for name, tensor in load_file(path / "model.safetensors").items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            packed[name] = tensor
            continue
        num_experts, num_in, num_out = tensor.shape
        generator = torch.Generator().manual_seed(num_out)
        shape = (num_experts, num_out, num_in // 32)
        blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=generator)
        exponents = torch.randint(122, 126, shape, dtype=torch.uint8, generator=generator)
        packed[f"{name}_blocks"], packed[f"{name}_scales"] = blocks, exponents
        values = convert_moe_packed_tensors(blocks, exponents, dtype=torch.float32)
        parameters[name].data.copy_(values)
    rewrite(path, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, packed)


@pytest.mark.parametrize("row", ["gpt-oss"], ids=lambda row: f"{row}, MXFP4")
def test_experts_of_four_bits_match_transformers(tmp_path: Path, row: str) -> None:
    config = make_config(row)
    config.hidden_size, config.intermediate_size = 64, 96  # in blocks of 32, also of two ranks
    model = make_checkpoint(tmp_path, config)
    quantize_mxfp4(tmp_path, model)
    assert_checkpoint_parity(tmp_path, model, (1, 2, 4))
    assert_expert_parallel_tokens(tmp_path, model, (2, 4))


def test_plan_counts_what_weights_unpack_to(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path, llama_config())
    plain = make_runner(tmp_path).memory_plan.weight_bytes
    quantize_float8(tmp_path, model, *FLOAT8_FORMS["FP8, a scale a block"])
    assert make_runner(tmp_path).memory_plan.weight_bytes == plain


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq-quantized checkpoints are not supported"),
        ({"quant_method": "awq"}, "awq-quantized"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes-quantized"),
        ({}, "unknown-quantized"),
        ({"quant_method": "fp8", "expert_dtype": "fp4"}, "fp8-quantized"),
        (compressed("group", 4, "int"), "compressed-tensors with 4-bit int weights"),
        (compressed("channel", 8, "int"), "compressed-tensors with 8-bit int weights"),
    ],
)
def test_other_forms_are_refused_by_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        read_quantization("somewhere", {"quantization_config": config})
    assert "supported: fp8, mxfp4" in str(error.value)


def test_numbers_without_their_scales_are_refused(tmp_path: Path) -> None:
    numbers = torch.ones(4, 4).to(torch.float8_e4m3fn)
    save_file({"a.weight": numbers}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"a\.weight has no scales"):
        read_tensor_entries(str(tmp_path), Quantization("float8"))


def test_scales_of_another_shape_are_refused(tmp_path: Path) -> None:
    tensors = {
        "a.weight": torch.ones(4, 4).to(torch.float8_e4m3fn),
        "a.weight_scale": torch.ones(2, 2),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"has shape \[2, 2\], which does not scale \[4, 4\]"):
        read_tensor_entries(str(tmp_path), Quantization("float8"))


def test_four_bits_without_exponents_are_refused(tmp_path: Path) -> None:
    blocks = torch.ones(2, 4, 1, 16, dtype=torch.uint8)
    save_file({"a_blocks": blocks}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"a_blocks has no scales \(a_scales\)"):
        read_tensor_entries(str(tmp_path), Quantization("mxfp4"))
