"""What of a checkpoint's tensors a rank keeps, cut into pieces that can be read one by one.

A piece is a block of a tensor and the part of a parameter that it fills; pieces are small enough to
be spread evenly over threads. No files here: the loader reads.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, cast

from torch import Tensor, nn

from worker.errors import CheckpointError
from worker.layers.shard import Shard, ShardedLayer
from worker.models.family import Rows, Target
from worker.models.tensor_entry import TensorEntry
from worker.models.unpacking import Index

PIECE_BYTES = 16 << 20


class ExpertLayer(Protocol):
    """A layer that stacks experts in its parameters, of the model's `num_experts` perhaps a few."""

    num_experts: int

    def place_of(self, expert: int) -> int | None:
        """Where an expert is in the parameters; None: on another rank."""
        ...


@dataclass(frozen=True, slots=True)
class Piece:
    """One block to copy."""

    entry: TensorEntry
    index: Index  # in the checkpoint's tensor
    slot: Tensor  # the elements it fills: a view of a parameter
    is_transposed: bool  # the checkpoint has the slot's dimensions in reverse

    @property
    def num_bytes(self) -> int:
        """In memory."""
        return self.slot.numel() * self.slot.element_size()


def pieces_of(
    model: nn.Module, entry: TensorEntry, target: Target, piece_bytes: int = PIECE_BYTES
) -> Iterator[Piece]:
    """Raises: CheckpointError when the tensor has another shape than the model wants."""
    path, _, name = target.parameter.rpartition(".")
    layer = model.get_submodule(path)
    shard = cast(ShardedLayer, layer).shard(name, target.part)
    _check_shape(entry, target, shard, layer)
    parameter: Tensor = getattr(layer, name)
    if target.expert is not None:
        place = cast(ExpertLayer, layer).place_of(target.expert)
        if place is None:
            return
        parameter = parameter[place]
    is_transposed = _is_transposed(entry, target)
    for start, length, offset in _ranges(target, shard):
        slot = parameter.narrow(shard.dim, offset, length)
        for begins, part in _cut(slot, shard.dim, start, piece_bytes):
            yield Piece(entry, _index(target, begins, part, is_transposed), part, is_transposed)


def _ranges(target: Target, shard: Shard) -> Iterator[tuple[int, int, int]]:
    """Neighbouring elements along the shard's dimension: start in the checkpoint's tensor, length,
    start in the parameter. Nothing where a rank's part is padding only.
    """
    done = 0
    while done < shard.num_available:
        start, length = shard.start + done, shard.num_available - done
        if target.rows is not None:
            start, length = _in_group(target.rows, start, length)
        yield start, length, shard.offset + done
        done += length


def _in_group(rows: Rows, start: int, length: int) -> tuple[int, int]:
    """The same features in the fused tensor: the first, and how many of them are neighbours."""
    group, within = divmod(start, rows.length)
    return group * rows.group_size + rows.start + within, min(length, rows.length - within)


def _cut(
    slot: Tensor, dim: int, start: int, piece_bytes: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Rows of the slot, and where they begin in the tensor; the slot begins there at `start` of
    `dim`.
    """
    begins = [0] * slot.dim()
    begins[dim] = start
    row_bytes = slot.numel() // max(1, slot.shape[0]) * slot.element_size()
    num_rows = max(1, piece_bytes // max(1, row_bytes))
    for row in range(0, slot.shape[0], num_rows):
        yield [begins[0] + row, *begins[1:]], slot[row : row + num_rows]


def _index(target: Target, begins: list[int], part: Tensor, is_transposed: bool) -> Index:
    index: Index = tuple(
        slice(begin, begin + size) for begin, size in zip(begins, part.shape, strict=True)
    )
    index = index[::-1] if is_transposed else index
    if not target.is_stacked:
        return index
    assert target.expert is not None, f"an expert of {target.parameter}"
    return (target.expert, *index)


def _is_transposed(entry: TensorEntry, target: Target) -> bool:
    return target.is_transposed and len(entry.shape) == 2 + target.is_stacked  # not a bias


def _check_shape(entry: TensorEntry, target: Target, shard: Shard, layer: nn.Module) -> None:
    expected = shard.full_shape
    if target.rows is not None:
        assert expected[0] == target.rows.num_groups * target.rows.length, f"rows of {entry.name}"
        expected = (target.rows.num_groups * target.rows.group_size, *expected[1:])
    if _is_transposed(entry, target):
        expected = expected[::-1]
    if target.is_stacked:
        expected = (cast(ExpertLayer, layer).num_experts, *expected)
    if expected != entry.shape:
        raise CheckpointError(
            f"{entry.file}: {entry.name} has shape {list(entry.shape)}, not {list(expected)}"
        )
