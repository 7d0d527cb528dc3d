"""Token embedding and output head, split over ranks by vocabulary rows, and learned positions.

The vocabulary is padded to a multiple of the ranks; the padding's logits are cut off again, so no
id beyond the model's vocabulary can ever be sampled. A tied head shares the embedding's parameter.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from worker.layers.linear import TensorOptions
from worker.layers.shard import Shard, divide_up
from worker.parallel.group import TPGroup


class VocabParallelEmbedding(nn.Module):
    """token_ids: [T] int; returns [T, hidden] on every rank."""

    def __init__(
        self, vocab_size: int, hidden_size: int, tp: TPGroup, options: TensorOptions
    ) -> None:
        super().__init__()
        self._tp = tp
        self._full_shape = (vocab_size, hidden_size)
        self._length = divide_up(vocab_size, tp.size)
        self._start = tp.rank * self._length
        self.weight = options.zeros(self._length, hidden_size)

    def forward(self, token_ids: Tensor) -> Tensor:
        if self._tp.size == 1:
            return F.embedding(token_ids, self.weight)
        local_ids = token_ids - self._start
        is_elsewhere = (local_ids < 0) | (local_ids >= self._length)
        x = F.embedding(local_ids.masked_fill_(is_elsewhere, 0), self.weight)
        return self._tp.all_reduce(x.masked_fill_(is_elsewhere[:, None], 0))

    def shard(self, parameter: str, part: str) -> Shard:
        return Shard(self._full_shape, dim=0, start=self._start, length=self._length)


class PositionEmbedding(nn.Module):
    """A learned vector for each position, the same on every rank. positions: [T] int64."""

    def __init__(
        self, num_positions: int, hidden_size: int, offset: int, options: TensorOptions
    ) -> None:
        super().__init__()
        self.offset = offset  # rows of the table before position 0
        self._shape = (num_positions + offset, hidden_size)
        self.weight = options.zeros(*self._shape)

    def forward(self, positions: Tensor) -> Tensor:
        return F.embedding(positions + self.offset, self.weight)

    def shard(self, parameter: str, part: str) -> Shard:
        return Shard.whole(*self._shape)


class ParallelLMHead(nn.Module):
    """x: [N, hidden]; returns logits [N, vocab_size] on every rank. `tied_to` shares its weight."""

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        tp: TPGroup,
        options: TensorOptions,
        tied_to: VocabParallelEmbedding | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self._tp = tp
        self._full_shape = (vocab_size, hidden_size)
        self.num_rows = divide_up(vocab_size, tp.size)
        self.weight = tied_to.weight if tied_to else options.zeros(self.num_rows, hidden_size)
        self.bias = options.zeros(self.num_rows) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        logits = self._tp.all_gather(F.linear(x, self.weight, self.bias))
        return logits[:, : self._full_shape[0]]

    def shard(self, parameter: str, part: str) -> Shard:
        start = self._tp.rank * self.num_rows
        shape = self._full_shape if parameter == "weight" else self._full_shape[:1]
        return Shard(shape, dim=0, start=start, length=self.num_rows)
