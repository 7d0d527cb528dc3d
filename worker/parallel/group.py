"""The tensor-parallel group: the collectives that layers, runner and start-up use.

`tp: TPGroup` is passed to constructors, never looked up, so a layer can be built at any pretended
rank in a test. With one rank every collective is the identity. All calls are collective: each rank
makes the same calls in the same order (Megatron-LM, Shoeybi et al. 2019, for the sharding they
serve).
"""

from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class TPGroup(Protocol):
    """Owned by the thread that runs the model."""

    rank: int
    size: int

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over ranks, in place where possible; returns the sum."""
        ...

    def all_gather(self, x: Tensor) -> Tensor:
        """x: [..., n] on each rank; returns [..., size * n] in rank order, on every rank."""
        ...

    def min_int(self, value: int) -> int:
        """The smallest value over ranks."""
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

    def min_int(self, value: int) -> int:
        return value

    def close(self) -> None:
        return None


class DistributedGroup:
    """Ranks in processes of their own: NCCL on GPUs, gloo on CPUs.

    The default process group belongs to this object; a process serves one replica's rank and
    nothing else. A collective that a dead peer never joins raises after `timeout_s`.
    """

    def __init__(
        self, rank: int, size: int, rendezvous: str, device: torch.device, timeout_s: float = 60.0
    ) -> None:
        self.rank = rank
        self.size = size
        self._device = device
        host, _, port = rendezvous.rpartition(":")
        timeout = timedelta(seconds=timeout_s)
        store = dist.TCPStore(host, int(port), size, is_master=False, timeout=timeout)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=timeout,
        )

    def all_reduce(self, x: Tensor) -> Tensor:
        dist.all_reduce(x)
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts, dim=-1)

    def min_int(self, value: int) -> int:
        x = torch.tensor([value], dtype=torch.int64, device=self._device)
        dist.all_reduce(x, op=dist.ReduceOp.MIN)
        return int(x.item())

    def close(self) -> None:
        dist.destroy_process_group()
