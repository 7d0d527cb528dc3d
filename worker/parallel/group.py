"""The tensor-parallel group: the collectives that layers, runner and start-up use.

`tp: TPGroup` is passed to constructors, never looked up, so a layer can be built at any pretended
rank in a test. With one rank every collective is the identity. All calls are collective: each rank
makes the same calls in the same order (Megatron-LM, Shoeybi et al. 2019, for the sharding they
serve).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from worker.errors import ShardError


class TPGroup(Protocol):
    """Owned by the thread that runs the model; `abort` may be called from any thread.

    Collectives raise ShardError when a rank has failed; the group is then of no more use.
    """

    rank: int
    size: int

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over ranks, in place where possible; returns the sum."""
        ...

    def all_gather(self, x: Tensor) -> Tensor:
        """x: [..., n] on each rank; returns [..., size * n] in rank order, on every rank."""
        ...

    def broadcast(self, x: Tensor) -> Tensor:
        """Rank 0's values on every rank, in place; x: of the same shape and type on all."""
        ...

    def min_int(self, value: int) -> int:
        """The smallest value over ranks."""
        ...

    def abort(self) -> None:
        """Ends the collective under way and fails all later ones, as far as this group can."""
        ...

    def close(self) -> None: ...


class SingleGroup:
    """One rank: TP=1 is TP=n with no-op collectives."""

    rank = 0
    size = 1

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        return x

    def broadcast(self, x: Tensor) -> Tensor:
        return x

    def min_int(self, value: int) -> int:
        return value

    def abort(self) -> None:
        return None

    def close(self) -> None:
        return None


class DistributedGroup:
    """Ranks in processes of their own: NCCL on GPUs, gloo on CPUs.

    The default process group belongs to this object; a process serves one replica's rank and
    nothing else. A collective that a dead peer never joins raises after `timeout_s`, with gloo at
    once.
    """

    def __init__(
        self, rank: int, size: int, store: dist.Store, device: torch.device, timeout_s: float = 60.0
    ) -> None:
        self.rank = rank
        self.size = size
        self._device = device
        self._is_open = True
        is_cuda = device.type == "cuda"
        if is_cuda and device.index is None:  # NCCL wants to be told which
            device = torch.device("cuda", torch.cuda.current_device())
        with _as_shard_error(rank):
            dist.init_process_group(
                "nccl" if is_cuda else "gloo",
                store=store,
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=timeout_s),
                device_id=device if is_cuda else None,
            )

    def all_reduce(self, x: Tensor) -> Tensor:
        with _as_shard_error(self.rank):
            dist.all_reduce(x)
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        parts = x.new_empty((self.size, *x.shape))
        with _as_shard_error(self.rank):
            if x.is_cuda:  # without a copy of all parts, and as one kernel of a captured step
                dist.all_gather_into_tensor(parts, x.contiguous())
            else:
                dist.all_gather(list(parts.unbind()), x.contiguous())
        return parts.movedim(0, -2).flatten(-2)

    def broadcast(self, x: Tensor) -> Tensor:
        with _as_shard_error(self.rank):
            dist.broadcast(x, src=0)
        return x

    def min_int(self, value: int) -> int:
        x = torch.tensor([value], dtype=torch.int64, device=self._device)
        with _as_shard_error(self.rank):
            dist.all_reduce(x, op=dist.ReduceOp.MIN)
            return int(x.item())

    def abort(self) -> None:
        """Ends NCCL's kernels; gloo notices a dead peer by itself, by its connections."""
        group = dist.group.WORLD
        if self._is_open and self._device.type == "cuda" and group is not None:
            group.abort()

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            dist.destroy_process_group()


@contextmanager
def _as_shard_error(rank: int) -> Iterator[None]:
    """torch reports every trouble between ranks as a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        raise ShardError(f"tensor-parallel group broken at rank {rank}: {error}") from error
