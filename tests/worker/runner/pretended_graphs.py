"""Decode graphs without a GPU: a record is the function itself, run again over the same memory."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from worker.attention.base import AttentionBackend, AttentionPlan, BatchLayout, LayerKVCache
from worker.attention.gathered import gathered_attention
from worker.runner.attention_uses import AttentionUse, PlanKey
from worker.runner.cuda_graphs import GraphParts


class FakeCapturer:
    """Counts what it records and what is replayed; `refuses` as a device does what it cannot."""

    def __init__(self, bytes_each: int = 100, refuses: bool = False) -> None:
        self.sizes: list[int] = []
        self.num_replays = 0
        self._bytes_each, self._refuses = bytes_each, refuses

    def capture(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        out = torch.empty_like(run())  # ranks run it together here; a device only records
        if self._refuses:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.sizes.append(len(out))

        def replay() -> None:
            self.num_replays += 1
            out.copy_(run())

        return replay, out

    def used_bytes(self) -> int:
        return self._bytes_each * len(self.sizes)


class PaddedAttention:
    """A StaticAttention over any backend."""

    def __init__(self, backend: AttentionBackend, uses: Mapping[PlanKey, AttentionUse]) -> None:
        self._backend, self._uses = backend, uses
        self.step: dict[PlanKey, AttentionPlan] = {}
        self.num_used = 0

    def fill(self, layouts: Sequence[BatchLayout], num_rows: int) -> None:
        self.num_used = len(layouts[0].query_lens)
        assert (layouts[0].query_lens == 1).all() and self.num_used <= num_rows
        self.step = {
            (kind, group): self._backend(layouts[group], kind) for kind, group in self._uses
        }

    def plans(self, num_rows: int) -> Mapping[PlanKey, AttentionPlan]:
        return {key: _PaddedPlan(self, key, num_rows) for key in self._uses}


class _PaddedPlan:
    def __init__(self, attention: PaddedAttention, key: PlanKey, num_rows: int) -> None:
        self._attention, self._key, self._num_rows = attention, key, num_rows

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, cache: LayerKVCache, sinks: Tensor | None = None
    ) -> Tensor:
        assert len(q) == self._num_rows
        count = self._attention.num_used
        plan = self._attention.step[self._key]
        out = torch.zeros_like(q)
        out[:count] = plan.run(q[:count], k[:count], v[:count], cache, sinks)
        return out


def pretended_parts(
    capturer: FakeCapturer, backend: AttentionBackend = gathered_attention
) -> GraphParts:
    return GraphParts(lambda uses, *_: PaddedAttention(backend, uses), capturer)
