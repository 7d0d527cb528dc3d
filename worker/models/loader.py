"""Fills a decoder's parameters from the weight files; each rank reads only its slices.

The family's weight map says where a tensor goes, the layer says which slice of it this rank keeps.
A checkpoint must match exactly: a tensor missing, left over or of another shape is an error, never
a guess.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from worker.errors import CheckpointError
from worker.layers.shard import Shard, ShardedLayer
from worker.models.checkpoint import TensorEntry, read_tensor_entries
from worker.models.family import Rows, Target, WeightMap
from worker.models.weights_file import Index, WeightsFile, as_checkpoint_error, open_weights_file

# Called with the bytes loaded so far and the bytes to load in all, both of this rank.
Progress = Callable[[int, int], None]

_MAX_NAMES_LISTED = 8
_MAX_THREADS = 8


def load_weights(
    model: nn.Module, model_path: str, weights: WeightMap, progress: Progress | None = None
) -> None:
    """Raises: CheckpointError when the checkpoint does not match the model; lists what does not."""
    entries = {
        weights.canonical_name(name): entry
        for name, entry in read_tensor_entries(model_path).items()
    }
    _check_names(model_path, entries, weights)
    pieces = [
        piece
        for name in weights.targets
        for target in weights.targets_of(name)
        for piece in _pieces(entries[name], target, _checked_shard(model, entries[name], target))
    ]
    total = sum(_num_bytes(model, piece) for piece in pieces)
    done = 0
    for piece in _copy_all(model, pieces):
        done += _num_bytes(model, piece)
        if progress is not None:
            progress(done, total)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Neighbouring elements along one dimension, and where they go in the same dimension."""

    entry: TensorEntry
    target: Target
    dim: int  # of the parameter
    start: int  # in the checkpoint's tensor
    length: int
    offset: int  # in the parameter


def _pieces(entry: TensorEntry, target: Target, shard: Shard) -> Iterator[_Piece]:
    """What this rank keeps of a tensor; nothing where its part is padding only."""
    done = 0
    while done < shard.num_available:
        start, length = shard.start + done, shard.num_available - done
        if target.rows is not None:
            start, length = _in_group(target.rows, start, length)
        yield _Piece(entry, target, shard.dim, start, length, shard.offset + done)
        done += length


def _in_group(rows: Rows, start: int, length: int) -> tuple[int, int]:
    """The same features in the fused tensor: the first, and how many of them are neighbours."""
    group, within = divmod(start, rows.length)
    return group * rows.group_size + rows.start + within, min(length, rows.length - within)


def _copy_all(model: nn.Module, pieces: list[_Piece]) -> Iterator[_Piece]:
    """Copies in several threads, so that one waits for the disk while another copies.

    Yields what is done. Raises: CheckpointError when a file cannot be read; nothing runs on then.
    """
    num_threads = max(1, min(_MAX_THREADS, torch.get_num_threads()))
    with ExitStack() as stack:
        paths = {piece.entry.file for piece in pieces}
        files = {path: stack.enter_context(open_weights_file(path)) for path in paths}
        pool = stack.enter_context(ThreadPoolExecutor(num_threads, "load-weights"))

        def copy(piece: _Piece) -> _Piece:
            _copy(files[piece.entry.file], piece, _parameter(model, piece.target))
            return piece

        yield from pool.map(copy, pieces)


def _copy(file: WeightsFile, piece: _Piece, parameter: Tensor) -> None:
    is_transposed = _is_transposed(piece.entry, piece.target)
    dim = 1 - piece.dim if is_transposed else piece.dim
    index: Index = (slice(None),) * dim + (slice(piece.start, piece.start + piece.length),)
    if piece.target.is_stacked:
        assert piece.target.expert is not None, f"an expert of {piece.entry.name}"
        index = (piece.target.expert, *index)
    with as_checkpoint_error(piece.entry.file):
        data = file.part(piece.entry.name, index)
    slot = parameter.narrow(piece.dim, piece.offset, piece.length)
    slot.copy_(data.t() if is_transposed else data)


def _is_transposed(entry: TensorEntry, target: Target) -> bool:
    return target.is_transposed and len(entry.shape) == 2 + target.is_stacked  # not a bias


def _check_names(model_path: str, entries: Mapping[str, TensorEntry], weights: WeightMap) -> None:
    missing = [name for name in weights.targets if name not in entries]
    left_over = [
        name for name in entries if name not in weights.targets and not weights.is_ignored(name)
    ]
    problems = [
        f"{len(names)} {what}: {_listed(names)}"
        for what, names in (("missing", missing), ("left over", left_over))
        if names
    ]
    if problems:
        raise CheckpointError(f"{model_path}: tensors do not match; {'; '.join(problems)}")


def _listed(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:_MAX_NAMES_LISTED])
    return shown if len(names) <= _MAX_NAMES_LISTED else f"{shown}, ..."


def _checked_shard(model: nn.Module, entry: TensorEntry, target: Target) -> Shard:
    path, _, parameter = target.parameter.rpartition(".")
    layer = cast(ShardedLayer, model.get_submodule(path))
    shard = layer.shard(parameter, target.part)
    expected = _expected_shape(entry, target, shard)
    if target.is_stacked:
        expected = (model.get_parameter(target.parameter).shape[0], *expected)
    if expected != entry.shape:
        raise CheckpointError(
            f"{entry.file}: {entry.name} has shape {list(entry.shape)}, not {list(expected)}"
        )
    return shard


def _expected_shape(entry: TensorEntry, target: Target, shard: Shard) -> tuple[int, ...]:
    shape = shard.full_shape
    if target.rows is not None:
        assert shape[0] == target.rows.num_groups * target.rows.length, f"rows of {entry.name}"
        shape = (target.rows.num_groups * target.rows.group_size, *shape[1:])
    return shape[::-1] if _is_transposed(entry, target) else shape


def _parameter(model: nn.Module, target: Target) -> Tensor:
    parameter = model.get_parameter(target.parameter)
    return parameter if target.expert is None else parameter[target.expert]


def _num_bytes(model: nn.Module, piece: _Piece) -> int:
    parameter = _parameter(model, piece.target)
    across = parameter.numel() // parameter.shape[piece.dim]
    return piece.length * across * parameter.element_size()
