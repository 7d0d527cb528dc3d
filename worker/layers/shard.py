"""Which part of a checkpoint's tensor a rank keeps: the contract between layers and the loader.

A layer answers `shard(parameter, part)` for each of its parameters; the loader reads that slice of
the checkpoint's tensor and nothing more. Layers know nothing of files, the loader nothing of
parallelism.
"""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Shard:
    """A slice of a checkpoint's tensor of shape `full_shape` and where it goes in the parameter.

    Elements `start .. start + length` along `dim` land at `offset` of the same dimension of the
    parameter. The slice may reach beyond the tensor: what is missing there stays zero (padding to a
    multiple of the number of ranks).
    """

    full_shape: tuple[int, ...]
    dim: int
    start: int
    length: int
    offset: int = 0

    @classmethod
    def whole(cls, *shape: int) -> "Shard":
        return cls(full_shape=shape, dim=0, start=0, length=shape[0])

    @property
    def num_available(self) -> int:
        """Elements along `dim` that the tensor really has for this slice."""
        return max(0, min(self.length, self.full_shape[self.dim] - self.start))


class ShardedLayer(Protocol):
    """A layer whose parameters can be loaded."""

    def shard(self, parameter: str, part: str) -> Shard:
        """`part` names one of several tensors fused into `parameter`; "" where there is one."""
        ...


def divide_up(total: int, num_parts: int) -> int:
    """The size of the largest part when `total` is spread evenly."""
    return -(-total // num_parts)


def split_heads(num_heads: int, num_kv_heads: int, tp_size: int) -> tuple[int, int]:
    """Query heads and KV heads of one rank. Raises: ValueError if heads do not divide evenly."""
    if num_heads % tp_size:
        raise ValueError(f"{num_heads} attention heads cannot be split over {tp_size} ranks")
    if num_kv_heads % tp_size and tp_size % num_kv_heads:
        raise ValueError(f"{num_kv_heads} KV heads cannot be split over {tp_size} ranks")
    return num_heads // tp_size, max(1, num_kv_heads // tp_size)
