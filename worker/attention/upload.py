"""Small arrays to a GPU by one copy: a step's, or into memory that stays where it is.

A copy costs the host ten microseconds whatever its size, and one from pageable memory waits for the
device; so a step's integers are laid side by side in pinned memory and travel together. Knows
nothing of what they mean. Called by attention plans and by whoever captures CUDA graphs over a
`StepBuffer`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

AnyArray = npt.NDArray[np.generic]

_ALIGNMENT = 16  # bytes; kernels load up to that many at once
_NUM_HOST_COPIES = 3  # steps that may be under way: one runs, one waits, one is prepared


def upload(arrays: Sequence[AnyArray], device: torch.device) -> list[Tensor]:
    """The arrays as tensors on the device, by one copy that nothing waits for."""
    if device.type == "cpu":
        return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    offsets, size = _offsets([array.nbytes for array in arrays])
    # Pinned memory is handed out again only once the copy is through.
    host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    for array, offset in zip(arrays, offsets, strict=True):
        _view(host, offset, array.shape, array.dtype).numpy()[...] = array
    copied = host.to(device, non_blocking=True)
    return [
        _view(copied, offset, array.shape, array.dtype)
        for array, offset in zip(arrays, offsets, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Field:
    """One array of a StepBuffer."""

    shape: tuple[int, ...]
    dtype: npt.DTypeLike = np.int32


class StepBuffer:
    """Named arrays in fixed memory of the device, for CUDA graphs, refilled by one copy a step.

    Write into `host(name)`, then `commit`; kernels read `device[name]`, whose addresses never
    change. Fields stand in the given order, so a long one that is rarely full belongs at the end.
    Owned by one thread, which also launches the kernels.
    """

    def __init__(self, fields: Mapping[str, Field], device: torch.device) -> None:
        dtypes = [np.dtype(field.dtype) for field in fields.values()]
        sizes = [
            int(np.prod(field.shape)) * dtype.itemsize
            for field, dtype in zip(fields.values(), dtypes, strict=True)
        ]
        offsets, size = _offsets(sizes)
        is_gpu = device.type == "cuda"
        self._bytes = torch.zeros(size, dtype=torch.uint8, device=device)
        self._hosts = [
            torch.zeros(size, dtype=torch.uint8, pin_memory=is_gpu) for _ in range(_NUM_HOST_COPIES)
        ]
        self._copied = [torch.cuda.Event() for _ in self._hosts] if is_gpu else []
        self._places = {
            name: (offset, field.shape, dtype)
            for (name, field), offset, dtype in zip(fields.items(), offsets, dtypes, strict=True)
        }
        self.device: dict[str, Tensor] = {
            name: _view(self._bytes, *place) for name, place in self._places.items()
        }
        self._views = [
            {name: _view(host, *place).numpy() for name, place in self._places.items()}
            for host in self._hosts
        ]
        self._turn = 0

    def host(self, name: str) -> AnyArray:
        """This step's array, with whatever a former step left in it."""
        return self._views[self._turn][name]

    def commit(self, last: str | None = None, num_last: int = 0) -> None:
        """Copies all, or all before the field `last` and its first `num_last` numbers."""
        size = len(self._bytes)
        if last is not None:
            offset, _, dtype = self._places[last]
            size = offset + num_last * dtype.itemsize
        self._bytes[:size].copy_(self._hosts[self._turn][:size], non_blocking=True)
        if self._copied:
            self._copied[self._turn].record()
        self._turn = (self._turn + 1) % len(self._hosts)
        if self._copied:  # of two commits ago: as a rule long done
            self._copied[self._turn].synchronize()


def _offsets(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where each begins, in bytes, and the end of all."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return offsets, end


def _view(memory: Tensor, offset: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Tensor:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    torch_dtype = torch.from_numpy(np.empty(0, dtype=dtype)).dtype
    return memory[offset : offset + size].view(torch_dtype).view(shape)
