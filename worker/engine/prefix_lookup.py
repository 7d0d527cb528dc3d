"""Finds the longest prefix of a sequence that is in the prefix cache for all groups of layers.

A hash stands for all tokens before it, so a group that sees only a window needs just the blocks
that the next token sees, a group that sees all needs every block. Reads the BlockPool; the
KVCacheManager calls it.
"""

from protos.block_hash import BlockHash
from worker.engine.block_pool import BlockPool
from worker.engine.block_rows import BlockRows, Kind
from worker.engine.kv_footprint import KVFootprint

# Stands in block tables for blocks that no token sees any more: a valid id, never read.
NULL_BLOCK = 0


class PrefixLookup:
    """Owned by the engine thread. Changes nothing."""

    def __init__(self, pool: BlockPool, footprint: KVFootprint, rows: BlockRows) -> None:
        self._pool, self._footprint, self._rows = pool, footprint, rows
        self._full = [kind for kind in rows.kinds if kind.window is None]

    def find(self, hashes: list[BlockHash]) -> list[int]:
        """The rows of the longest cached prefix; NULL_BLOCK where nothing sees a block any more."""
        num_blocks = len(hashes)
        firsts: list[int] = []
        found: list[list[int]] = []
        for kind in self._full:  # one at most
            num_blocks, found = self._run(kind, hashes, 0, num_blocks)
            firsts = [0] * len(found)
        if self._rows.num_groups == 1 and not self._rows.windowed:
            return found[0]
        num_blocks, more_firsts, more_found = self._find_windows(hashes, num_blocks)
        return self._merge(num_blocks, firsts + more_firsts, found + more_found)

    def _find_windows(
        self, hashes: list[BlockHash], num_blocks: int
    ) -> tuple[int, list[int], list[list[int]]]:
        """The longest prefix of at most so many blocks whose last ones, as far as they are seen,
        all windowed groups have: its blocks, and of each group the first seen and the ids.

        Looks at a window's first block first: a miss there rules out all prefixes that see it, so
        a long prompt of which nothing is cached costs one look-up a window.
        """
        while num_blocks:
            firsts: list[int] = []
            found: list[list[int]] = []
            stop = num_blocks
            for kind in self._rows.windowed:
                first = self._first_seen(kind, num_blocks)
                stop, block_ids = self._run(kind, hashes, first, num_blocks)
                if stop < num_blocks:
                    break
                firsts += [first] * len(block_ids)
                found += block_ids
            if stop == num_blocks:
                return num_blocks, firsts, found
            num_blocks = stop
        return 0, [0] * self._rows.num_windowed, [[]] * self._rows.num_windowed

    def _first_seen(self, kind: Kind, num_blocks: int) -> int:
        """The first block that must be cached; the last must, also where nothing will see it."""
        num_computed = num_blocks * self._footprint.block_size
        return min(self._footprint.num_unseen(num_computed, kind.window), num_blocks - 1)

    def _run(
        self, kind: Kind, hashes: list[BlockHash], first: int, stop: int
    ) -> tuple[int, list[list[int]]]:
        """From block `first` on, how far all groups of the kind have them: the end, and the ids of
        each group, of some perhaps more than up to there.
        """
        lookup = self._pool.lookup
        found: list[list[int]] = []
        for group in range(kind.first, kind.stop):
            block_ids: list[int] = []
            for block_hash in hashes[first:stop]:
                block_id = lookup(block_hash, group)
                if block_id is None:
                    break
                block_ids.append(block_id)
            stop = first + len(block_ids)
            found.append(block_ids)
        return stop, found

    def _merge(self, num_blocks: int, firsts: list[int], found: list[list[int]]) -> list[int]:
        num_groups = self._rows.num_groups
        rows = [NULL_BLOCK] * (num_blocks * num_groups)
        for group, (first, block_ids) in enumerate(zip(firsts, found, strict=True)):
            rows[first * num_groups + group :: num_groups] = block_ids[: num_blocks - first]
        return rows
