"""Slices of packed tensors, multiplied out: what `quantization.py` has recognised, as numbers.

Only the blocks that a slice touches are read, so each rank unpacks its own part. Called by the
loader; the arithmetic is fp32 and ends in the parameter's type.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from worker.models.tensor_entry import MXFP4, ScaledFloat8, TensorEntry

# Of a tensor's dimensions, all of them; an int takes one element of its dimension.
Index = tuple[int | slice, ...]
# Slices of tensors as they lie in the files.
ReadPart = Callable[[TensorEntry, Index], Tensor]

# A sign, two bits of exponent, one of mantissa (E2M1).
_FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_EXPONENT_BIAS = 127
_BLOCK = 32


def read_values(entry: TensorEntry, index: Index, read: ReadPart) -> Tensor:
    """The values at `index`; a view of the file where they are not packed."""
    match entry.packing:
        case None:
            return read(entry, index)
        case ScaledFloat8() as packing:
            return _scaled_float8(packing, index, read)
        case MXFP4() as packing:
            return _mxfp4(packing, index, read)


def _scaled_float8(packing: ScaledFloat8, index: Index, read: ReadPart) -> Tensor:
    """[rows, columns] fp32."""
    rows, columns = _ranges(index)
    numbers = read(packing.numbers, index).float()
    if packing.scales.num_elements == 1:
        whole = tuple(slice(0, size) for size in packing.scales.shape)
        return numbers.mul_(read(packing.scales, whole).reshape(1).float())
    block_rows, block_columns = packing.block
    row_blocks = slice(rows.start // block_rows, -(-rows.stop // block_rows))
    if len(packing.scales.shape) == 1:
        scales = read(packing.scales, (row_blocks,)).unsqueeze(1).float()
    else:
        column_blocks = slice(columns.start // block_columns, -(-columns.stop // block_columns))
        scales = read(packing.scales, (row_blocks, column_blocks)).float()
    of_row = _blocks_of(rows, block_rows, row_blocks.start)
    of_column = _blocks_of(columns, block_columns, columns.start // block_columns)
    return numbers.mul_(scales.index_select(0, of_row).index_select(1, of_column))


def _blocks_of(places: range, size: int, first: int) -> Tensor:
    return torch.arange(places.start, places.stop) // size - first


def _mxfp4(packing: MXFP4, index: Index, read: ReadPart) -> Tensor:
    """Of one expert: [in, out] fp32, as a view of the transposed values."""
    expert, columns, rows = index
    assert isinstance(expert, int) and isinstance(columns, slice)
    blocks = slice(columns.start // _BLOCK, -(-columns.stop // _BLOCK))
    packed = read(packing.numbers, (expert, rows, blocks, slice(0, _BLOCK // 2)))
    exponents = read(packing.exponents, (expert, rows, blocks))
    table = torch.tensor([*_FP4_VALUES, *(-value for value in _FP4_VALUES)])
    halves = torch.stack((packed & 15, packed >> 4), dim=-1)
    values = table[halves.flatten(-2).int()]  # [rows, blocks, 32]
    values = torch.ldexp(values, (exponents.int() - _EXPONENT_BIAS).unsqueeze(-1)).flatten(1)
    start = columns.start - blocks.start * _BLOCK
    return values[:, start : start + columns.stop - columns.start].t()


def _ranges(index: Index) -> tuple[range, range]:
    rows, columns = index
    assert isinstance(rows, slice) and isinstance(columns, slice)
    return range(rows.start, rows.stop), range(columns.start, columns.stop)
