"""Checkpoints with quantized weights: which forms can be read, and what their tensors stand for.

A form is a dialect of the checkpoint: numbers and scales become one TensorEntry with the name and
the shape that the family knows, and are multiplied out while they are loaded (`unpacking.py`).
Pure, without torch: the memory plan counts what will be in memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from worker.errors import CheckpointError
from worker.models.tensor_entry import MXFP4, ScaledFloat8, TensorEntry

FLOAT8 = "F8_E4M3"
_SUPPORTED = "fp8, mxfp4 and compressed-tensors with 8-bit floats"
_FLOAT8_BLOCK = (128, 128)
_SCALE_SUFFIXES = ("_scale_inv", "_scale")  # of a weight's name
# What belongs to arithmetic in eight bits, which is not done here.
_UNUSED_SUFFIXES = (".input_scale", ".activation_scale", ".k_scale", ".v_scale", ".kv_scale")
_MXFP4_BLOCK = 32


@dataclass(frozen=True, slots=True)
class Quantization:
    kind: Literal["float8", "mxfp4"]
    block: tuple[int, int] = _FLOAT8_BLOCK  # float8 with a scale for each block


def read_quantization(path: str, raw: Mapping[str, Any]) -> Quantization | None:
    """Of a config.json; None: there is none. Raises: CheckpointError naming what is unsupported."""
    config = raw.get("quantization_config")
    if config is None:
        return None
    method = str(config.get("quant_method", "unknown"))
    if method == "mxfp4":
        return Quantization("mxfp4")
    if method == "fp8" and str(config.get("expert_dtype", "fp8")) == "fp8":
        return Quantization("float8", _block(config.get("weight_block_size")))
    if method == "compressed-tensors":
        return _compressed_tensors(path, config)
    raise CheckpointError(
        f"{path}: {method}-quantized checkpoints are not supported; supported: {_SUPPORTED}"
    )


def _compressed_tensors(path: str, config: Mapping[str, Any]) -> Quantization:
    groups = [group.get("weights") or {} for group in (config.get("config_groups") or {}).values()]
    for weights in groups:
        kind = f"{weights.get('num_bits')}-bit {weights.get('type')}"
        if kind != "8-bit float":
            raise CheckpointError(
                f"{path}: compressed-tensors with {kind} weights are not supported; supported: "
                f"{_SUPPORTED}"
            )
    blocks = {_block(weights.get("block_structure")) for weights in groups} or {_FLOAT8_BLOCK}
    if len(blocks) > 1:
        raise CheckpointError(f"{path}: compressed-tensors in blocks of several sizes")
    return Quantization("float8", blocks.pop())


def _block(size: Any) -> tuple[int, int]:
    return (int(size[0]), int(size[1])) if size else _FLOAT8_BLOCK


def unpacked_entries(
    entries: Mapping[str, TensorEntry], quantization: Quantization
) -> dict[str, TensorEntry]:
    """The tensors that the family knows. Raises: CheckpointError where scales are missing or do not
    fit.
    """
    fold = _fold_float8 if quantization.kind == "float8" else _fold_mxfp4
    used: set[str] = set()
    folded: dict[str, TensorEntry] = {}
    for entry in entries.values():
        new = fold(entry, entries, quantization)
        if new is not None:
            folded[new.name] = new
            assert new.packing is not None
            used |= {packed.name for packed in _parts(new.packing)}
    rest = {
        name: entry
        for name, entry in entries.items()
        if name not in used and not name.endswith(_UNUSED_SUFFIXES)
    }
    return rest | folded


def _parts(packing: ScaledFloat8 | MXFP4) -> tuple[TensorEntry, TensorEntry]:
    if isinstance(packing, MXFP4):
        return packing.numbers, packing.exponents
    return packing.numbers, packing.scales


def _fold_float8(
    numbers: TensorEntry, entries: Mapping[str, TensorEntry], quantization: Quantization
) -> TensorEntry | None:
    if numbers.dtype != FLOAT8:
        return None
    names = [numbers.name + suffix for suffix in _SCALE_SUFFIXES]
    scales = next((entries[name] for name in names if name in entries), None)
    if scales is None:
        raise CheckpointError(f"{numbers.file}: {numbers.name} has no scales ({names[0]})")
    if len(numbers.shape) != 2:
        raise CheckpointError(f"{numbers.file}: {numbers.name} of FP8 is no matrix")
    block = _block_of(numbers, scales, quantization.block)
    return TensorEntry(
        numbers.name, numbers.file, numbers.shape, "", ScaledFloat8(numbers, scales, block)
    )


def _block_of(numbers: TensorEntry, scales: TensorEntry, block: tuple[int, int]) -> tuple[int, int]:
    rows, columns = numbers.shape
    if scales.num_elements == 1:
        return rows, columns
    if scales.shape in ((rows, 1), (rows,)):
        return 1, columns
    if scales.shape == (-(-rows // block[0]), -(-columns // block[1])):
        return block
    raise CheckpointError(
        f"{scales.file}: {scales.name} has shape {list(scales.shape)}, which does not scale "
        f"{list(numbers.shape)} in blocks of {list(block)}"
    )


def _fold_mxfp4(
    numbers: TensorEntry, entries: Mapping[str, TensorEntry], quantization: Quantization
) -> TensorEntry | None:
    name = numbers.name.removesuffix("_blocks")
    if name == numbers.name:
        return None
    exponents = entries.get(f"{name}_scales")
    if exponents is None:
        raise CheckpointError(f"{numbers.file}: {numbers.name} has no scales ({name}_scales)")
    shape = numbers.shape
    if len(shape) != 4 or shape[3] * 2 != _MXFP4_BLOCK or exponents.shape != shape[:3]:
        raise CheckpointError(
            f"{numbers.file}: {numbers.name} has shape {list(shape)} and its scales "
            f"{list(exponents.shape)}: no MXFP4 in blocks of {_MXFP4_BLOCK}"
        )
    num_experts, num_out, num_blocks, _ = shape
    values = (num_experts, num_blocks * _MXFP4_BLOCK, num_out)
    return TensorEntry(name, numbers.file, values, "", MXFP4(numbers, exponents))
