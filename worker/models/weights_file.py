"""Open weight files: slices of their tensors by name, as views of the mapped file.

What a rank does not copy is never in its own memory; what it copies, only as the kernel's cached
pages. Nothing may keep a view: reading from a file that was cut short meanwhile ends the process.
Called by the loader; which tensors a file has, `checkpoint` tells without torch.
"""

import ctypes
import functools
import mmap
import pickle
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol, cast
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from worker.errors import CheckpointError
from worker.models.unpacking import Index

_ANNOUNCED_BYTES = 1 << 20  # less comes with its neighbours


class WeightsFile(Protocol):
    """Any thread may ask while the file is open."""

    def part(self, name: str, index: Index) -> Tensor:
        """A view of the file, to be copied; ends with the file."""
        ...


class SafetensorsFile:
    """Immutable: `handle` is open as long as this is in use."""

    def __init__(self, handle: safe_open) -> None:
        self._handle = handle

    def part(self, name: str, index: Index) -> Tensor:
        return _announced(cast(Tensor, self._handle.get_slice(name)[index]))


class PickledFile:
    """Immutable. Files from before torch 1.6 cannot be mapped and are held whole while open."""

    def __init__(self, path: Path) -> None:
        self._tensors: dict[str, Tensor] = torch.load(
            path, map_location="cpu", weights_only=True, mmap=is_zipfile(path)
        )

    def part(self, name: str, index: Index) -> Tensor:
        return _announced(self._tensors[name][index])


def _announced(view: Tensor) -> Tensor:
    """The same. Tells the system that all of it is about to be read: a disk or a network then
    brings it in long reads, not some pages for each that is missed. Cached, it costs 2 ms a GB.
    """
    num_bytes = view.element_size() * (
        1 + sum((n - 1) * step for n, step in zip(view.shape, view.stride(), strict=True))
    )
    madvise = _madvise()
    if madvise is not None and num_bytes >= _ANNOUNCED_BYTES and view.numel():
        begin = view.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
        madvise(begin, view.data_ptr() + num_bytes - begin, mmap.MADV_WILLNEED)
    return view


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """None: not on this system."""
    try:
        function = ctypes.CDLL(None).madvise
    except (AttributeError, OSError, TypeError):
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return cast("Callable[[int, int, int], int]", function)


@contextmanager
def open_weights_file(path: Path) -> Iterator[WeightsFile]:
    with ExitStack() as stack:
        with as_checkpoint_error(path):
            file: WeightsFile
            if path.suffix == ".safetensors":
                file = SafetensorsFile(stack.enter_context(safe_open(path, framework="pt")))
            else:
                file = PickledFile(path)
        yield file


@contextmanager
def as_checkpoint_error(path: Path) -> Iterator[None]:
    """torch reports a damaged archive as a RuntimeError."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
