"""Fills a decoder's parameters from the weight files; each rank reads only its slices.

The family's weight map says where a tensor goes, the layer says which slice of it this rank keeps.
A checkpoint must match exactly: a tensor missing, left over or of another shape is an error, never
a guess.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import Protocol

import torch
from torch import Tensor, nn

from worker.errors import CheckpointError
from worker.models.checkpoint import read_tensor_entries
from worker.models.family import WeightMap
from worker.models.pieces import Piece, pieces_of
from worker.models.quantization import Quantization
from worker.models.tensor_entry import TensorEntry
from worker.models.unpacking import Index, read_values
from worker.models.weights_file import WeightsFile, as_checkpoint_error, open_weights_file

logger = logging.getLogger(__name__)

# Called with the bytes loaded so far and the bytes to load in all, both of this rank.
Progress = Callable[[int, int], None]


class WeightSink(Protocol):
    """Takes values on their way to parameters that need not hold them."""

    def write(self, slot: Tensor, data: Tensor) -> bool:
        """`data` is what belongs into `slot`, rows of a parameter, perhaps in another type; it is
        gone after the call. False: the parameter holds its values itself. Called from several
        threads.
        """
        ...


_MAX_NAMES_LISTED = 8
# More threads than cores wait for a disk together; on warm files they do no harm.
_MIN_THREADS = 4
_MAX_THREADS = 8


def load_weights(
    model: nn.Module,
    model_path: str,
    weights: WeightMap,
    progress: Progress | None = None,
    quantization: Quantization | None = None,
    sink: WeightSink | None = None,
) -> None:
    """Fills the parameters, but those whose values `sink` takes.

    Raises: CheckpointError when the checkpoint does not match the model; lists what does not.
    """
    entries = {
        weights.canonical_name(name): entry
        for name, entry in read_tensor_entries(model_path, quantization).items()
    }
    _check_names(model_path, entries, weights)
    pieces = [  # as they lie in the files, so that a disk reads forward
        piece
        for name, entry in entries.items()
        if name in weights.targets
        for target in weights.targets_of(name)
        for piece in pieces_of(model, entry, target)
    ]
    total = sum(piece.num_bytes for piece in pieces)
    done, start_s = 0, monotonic()
    for piece in _copy_all(pieces, sink):
        done += piece.num_bytes
        if progress is not None:
            progress(done, total)
    took_s = max(monotonic() - start_s, 1e-6)
    logger.info("%.2f GB in %.2f s: %.2f GB/s", total / 1e9, took_s, total / 1e9 / took_s)


def _copy_all(pieces: list[Piece], sink: WeightSink | None) -> Iterator[Piece]:
    """Copies in several threads, so that one waits for the disk while another copies.

    Yields what is done. Raises: CheckpointError when a file cannot be read; nothing runs on then.
    """
    num_threads = max(_MIN_THREADS, min(_MAX_THREADS, torch.get_num_threads()))
    with ExitStack() as stack:
        files = {path: stack.enter_context(open_weights_file(path)) for path in _files(pieces)}
        pool = stack.enter_context(ThreadPoolExecutor(num_threads, "load-weights"))

        def copy(piece: Piece) -> Piece:
            _copy(files, piece, sink)
            return piece

        yield from pool.map(copy, pieces)


def _files(pieces: list[Piece]) -> set[Path]:
    return {file for piece in pieces for file in piece.entry.files}


def _copy(files: Mapping[Path, WeightsFile], piece: Piece, sink: WeightSink | None) -> None:
    def read(entry: TensorEntry, index: Index) -> Tensor:
        return files[entry.file].part(entry.name, index)

    with as_checkpoint_error(piece.entry.file):
        data = read_values(piece.entry, piece.index, read)
    if piece.is_transposed:
        data = data.t()
    if sink is None or not sink.write(piece.slot, data):
        piece.slot.copy_(data)


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
