"""A tensor-parallel group of threads in one process: collectives meet at a barrier."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

_DEADLINE_S = 30.0


class _Shared:
    def __init__(self, size: int) -> None:
        self.barrier = Barrier(size)
        self.contributions: list[Tensor | int] = [0] * size


class SimulatedGroup:
    """One rank's view. A rank that fails breaks the barrier, so the others fail at once."""

    def __init__(self, rank: int, size: int, shared: _Shared) -> None:
        self.rank = rank
        self.size = size
        self._shared = shared

    def all_reduce(self, x: Tensor) -> Tensor:
        return torch.stack(self._exchange(x.clone())).sum(dim=0)

    def all_gather(self, x: Tensor) -> Tensor:
        return torch.cat(self._exchange(x.clone()), dim=-1)

    def broadcast(self, x: Tensor) -> Tensor:
        return x.copy_(self._exchange(x.clone())[0])

    def min_int(self, value: int) -> int:
        return min(self._exchange(value))

    def close(self) -> None:
        return None

    def abort(self) -> None:
        self._shared.barrier.abort()

    def _exchange(self, value):  # type: ignore[no-untyped-def]
        self._shared.contributions[self.rank] = value
        self._shared.barrier.wait(_DEADLINE_S)
        values = list(self._shared.contributions)
        self._shared.barrier.wait(_DEADLINE_S)  # nobody overwrites what another still reads
        return values


def run_ranks(size: int, body: Callable[[SimulatedGroup], T]) -> list[T]:
    """Runs `body` once per rank, each in its thread; returns their results in rank order."""
    shared = _Shared(size)

    def run(rank: int) -> T:
        group = SimulatedGroup(rank, size, shared)
        try:
            return body(group)
        except BaseException:
            group.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
    return _results(futures)


def _results(futures):  # type: ignore[no-untyped-def]
    errors = [f.exception() for f in futures if f.exception() is not None]
    if errors:  # a broken barrier is a consequence: show the cause
        raise next((e for e in errors if type(e).__name__ != "BrokenBarrierError"), errors[0])
    return [future.result() for future in futures]
