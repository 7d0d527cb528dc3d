"""Attention plans over memory of fixed addresses, for decode steps captured as CUDA graphs.

What changes from step to step is data in one `StepBuffer`; what a graph holds, launch grids and
addresses, depends on the padded number of sequences alone. Knows nothing of graphs: whoever
captures them calls `plans` before and `fill` before each replay.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from worker.attention.base import AttentionKind, BatchLayout, LayerKVCache
from worker.attention.triton_paged import Launch, Parts, cut_of, run_launches
from worker.attention.triton_tiles import Heads, narrow_tile
from worker.attention.triton_work import (
    ITEM_FIELDS,
    TILE_FIELDS,
    Cut,
    IntArray,
    Sequences,
    cut_work,
    flat_tables,
)
from worker.attention.upload import Field, StepBuffer

PlanKey = tuple[AttentionKind, int]  # a kind of attention, and the group of its layers' caches


class StaticDecode:
    """The plans of steps that have one token a sequence, up to `max_rows` sequences.

    Owned by the thread that runs the model. Graphs of different sizes share the memory: one runs at
    a time. `extra` fields of the buffer travel in the same copy: token ids, positions, slots.
    """

    def __init__(
        self,
        heads: Mapping[PlanKey, Heads],
        max_rows: int,
        max_blocks: int,
        device: torch.device,
        extra: Mapping[str, Field] | None = None,
    ) -> None:
        """`max_blocks`: in the tables of a step, all sequences and groups together; a block that
        two sequences share counts twice.
        """
        self._max_rows = max_rows
        self._uses = [_Use(key, its_heads, device) for key, its_heads in heads.items()]
        fields = dict(extra or {})
        for i, use in enumerate(self._uses):
            fields[_items(i)] = Field((max_rows + use.cut.num_extra, ITEM_FIELDS))
            fields[_tiles(i)] = Field((max_rows, TILE_FIELDS))
        fields["tables"] = Field((max_blocks,))  # the last: only what is used is copied
        self.buffer = StepBuffer(fields, device)
        self._parts = [
            Parts.empty(2 * use.cut.num_extra, use.shape, use.heads, device) for use in self._uses
        ]

    def fill(self, layouts: Sequence[BatchLayout], num_rows: int) -> None:
        """Makes the plans for `num_rows` those of this step: one copy, which nothing waits for.

        layouts: of each group, of at most `num_rows` sequences; further rows get zeros. What the
        `extra` fields are to hold, the caller has written into `buffer.host(name)` before.
        """
        first = layouts[0]
        num_used = len(first.query_lens)
        assert (first.query_lens == 1).all() and num_used <= num_rows <= self._max_rows
        starts, num_blocks = self._fill_tables(layouts)
        rows = np.arange(num_used, dtype=np.int32)
        for i, use in enumerate(self._uses):
            sequences = Sequences(first.query_lens, first.context_lens, rows, starts[use.group])
            work = cut_work(sequences, use.kind.window, use.cut)
            items, tiles = self.buffer.host(_items(i)), self.buffer.host(_tiles(i))
            items[: len(work.items)] = work.items
            items[len(work.items) : num_rows + use.cut.num_extra] = 0
            tiles[:num_used] = work.tiles
            tiles[num_used:num_rows] = 0  # no items: the result is zero
            tiles[num_used:num_rows, 0] = np.arange(num_used, num_rows)
            tiles[num_used:num_rows, 1] = 1
        self.buffer.commit("tables", num_blocks)

    def _fill_tables(self, layouts: Sequence[BatchLayout]) -> tuple[list[IntArray], int]:
        """All groups' block ids, one behind the other. Returns where each sequence's begin, by
        group, and the end of all.
        """
        memory = self.buffer.host("tables")
        starts: list[IntArray] = []
        end = 0
        for layout in layouts:
            tables, first = flat_tables(layout.block_tables, layout.context_lens, layout.block_size)
            memory[end : end + len(tables)] = tables
            starts.append(first + np.int32(end))
            end += len(tables)
        return starts, end

    def plans(self, num_rows: int) -> dict[PlanKey, "StaticPlan"]:
        """For batches padded to `num_rows`; they read what `fill` wrote last."""
        device = self.buffer.device
        return {
            use.key: StaticPlan(
                Launch(
                    use.kind,
                    use.heads,
                    use.shape,
                    is_chunk=False,
                    num_items=num_rows + use.cut.num_extra,
                    num_tiles=num_rows,
                    items=device[_items(i)],
                    tiles=device[_tiles(i)],
                    tables=device["tables"],
                    parts=self._parts[i],
                )
            )
            for i, use in enumerate(self._uses)
        }


class StaticPlan:
    """See `AttentionPlan`. Of a `StaticDecode`, for one number of rows."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, cache: LayerKVCache, sinks: Tensor | None = None
    ) -> Tensor:
        assert len(q) == self._launch.num_tiles, "a batch of another size than planned"
        return run_launches([self._launch], self._launch.heads, q, cache, sinks)


class _Use:
    """One kind of attention in one group of layers."""

    def __init__(self, key: PlanKey, heads: Heads, device: torch.device) -> None:
        self.key, self.heads = key, heads
        self.kind, self.group = key
        self.shape = narrow_tile(heads, 1)
        self.cut: Cut = cut_of(self.shape, device)


def _items(i: int) -> str:
    return f"items {i}"


def _tiles(i: int) -> str:
    return f"tiles {i}"
