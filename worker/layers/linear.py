"""Linear layers over the tensor-parallel group: column-parallel (plain and fused) and row-parallel.

Column-parallel layers split the output features and need no communication; a row-parallel layer
splits the input features and sums over ranks (Megatron-LM, Shoeybi et al. 2019, section 3). A
column layer feeding a row layer costs one all-reduce. Called by the decoder's blocks; loaded
through `shard`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.layers.shard import Shard, divide_up, split_heads
from worker.layers.zeros import zeros
from worker.parallel.group import TPGroup

# fp32 products on CPUs run up to twice as fast over column-major weights, as long as a weight stays
# in the caches; larger ones are bound by memory and stream best in rows (measured on AVX-512).
_COLUMN_MAJOR_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class TensorOptions:
    """Where and in which type a layer allocates its parameters."""

    dtype: torch.dtype
    device: torch.device
    fused: bool = False  # layers run on kernels of our own (Triton), where they have any

    def zeros(self, *shape: int) -> nn.Parameter:
        return frozen(zeros(shape, self.dtype, self.device))

    def weight(self, num_out: int, num_in: int) -> nn.Parameter:
        """A [num_out, num_in] matrix, laid out for the device's matrix product."""
        is_small = num_out * num_in * self.dtype.itemsize <= _COLUMN_MAJOR_BYTES
        if self.device.type == "cpu" and self.dtype == torch.float32 and is_small:
            return frozen(zeros((num_in, num_out), self.dtype, self.device).t())
        return self.zeros(num_out, num_in)


def frozen(x: Tensor) -> nn.Parameter:
    return nn.Parameter(x, requires_grad=False)


@dataclass(frozen=True, slots=True)
class _Part:
    """One checkpoint tensor fused into a column-parallel weight, as this rank sees it."""

    num_features: int  # in the checkpoint
    start: int  # first feature of this rank
    length: int  # features of this rank, padding included
    offset: int  # first row in the fused weight


class ColumnParallelLinear(nn.Module):
    """y = x W^T + b, output features split over ranks. x: [T, in]; returns [T, out / ranks].

    `parts` are the checkpoint's tensors, fused row-wise into one product. Features are padded with
    zeros to a multiple of the number of ranks.
    """

    def __init__(
        self,
        num_in: int,
        parts: dict[str, int],
        bias: bool,
        tp: TPGroup,
        options: TensorOptions,
    ) -> None:
        super().__init__()
        lengths = [divide_up(size, tp.size) for size in parts.values()]
        starts = [tp.rank * length for length in lengths]
        self._set_up(num_in, parts, starts, lengths, bias, options)

    def _set_up(
        self,
        num_in: int,
        parts: dict[str, int],
        starts: Sequence[int],
        lengths: Sequence[int],
        bias: bool,
        options: TensorOptions,
    ) -> None:
        self._num_in = num_in
        self._parts: dict[str, _Part] = {}
        offset = 0
        for (name, size), start, length in zip(parts.items(), starts, lengths, strict=True):
            self._parts[name] = _Part(size, start, length, offset)
            offset += length
        self.num_out = offset
        self.weight = options.weight(offset, num_in)
        self.bias = options.zeros(offset) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def shard(self, parameter: str, part: str) -> Shard:
        p = self._parts[part]
        shape = (p.num_features, self._num_in) if parameter == "weight" else (p.num_features,)
        return Shard(shape, dim=0, start=p.start, length=p.length, offset=p.offset)


class QKVParallelLinear(ColumnParallelLinear):
    """Query, key and value projections in one product, split by heads.

    Returns [T, (num_heads + 2 * num_kv_heads) * head_dim] with this rank's counts. With more ranks
    than KV heads each KV head is kept by several neighbouring ranks.
    """

    def __init__(
        self,
        num_in: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        bias: bool,
        tp: TPGroup,
        options: TensorOptions,
    ) -> None:
        nn.Module.__init__(self)
        heads = split_heads(num_heads, num_kv_heads, tp.size)
        self.num_heads, self.num_kv_heads = heads
        kv_start = tp.rank * num_kv_heads // tp.size * head_dim
        parts = {
            "q": num_heads * head_dim,
            "k": num_kv_heads * head_dim,
            "v": num_kv_heads * head_dim,
        }
        starts = [tp.rank * self.num_heads * head_dim, kv_start, kv_start]
        lengths = [n * head_dim for n in (self.num_heads, self.num_kv_heads, self.num_kv_heads)]
        self._set_up(num_in, parts, starts, lengths, bias, options)


class RowParallelLinear(nn.Module):
    """y = sum over ranks of x W^T, plus b. x: [T, in / ranks]; returns [T, out], on every rank."""

    def __init__(
        self, num_in: int, num_out: int, bias: bool, tp: TPGroup, options: TensorOptions
    ) -> None:
        super().__init__()
        self._tp = tp
        self._num_in, self._num_out = num_in, num_out
        self._length = divide_up(num_in, tp.size)
        self.weight = options.weight(num_out, self._length)
        self.bias = options.zeros(num_out) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self._tp.size == 1:
            return F.linear(x, self.weight, self.bias)
        y = self._tp.all_reduce(F.linear(x, self.weight))
        return y if self.bias is None else y + self.bias

    def shard(self, parameter: str, part: str) -> Shard:
        if parameter == "bias":
            return Shard.whole(self._num_out)
        start = self._tp.rank * self._length
        return Shard((self._num_out, self._num_in), dim=1, start=start, length=self._length)


class ReplicatedLinear(nn.Module):
    """y = x W^T, whole on every rank: for small products whose result all ranks need."""

    def __init__(self, num_in: int, num_out: int, options: TensorOptions) -> None:
        super().__init__()
        self._shape = (num_out, num_in)
        self.weight = options.weight(num_out, num_in)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)

    def shard(self, parameter: str, part: str) -> Shard:
        return Shard.whole(*self._shape)
