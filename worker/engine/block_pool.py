"""The ledger of KV blocks: which are free, in which order they are given away, and what they hold.

Knows ids and hashes, never tensors or requests. The KVCacheManager calls it from the engine thread.
Any group of layers can have any block; what a block holds is known by its hash and its group.

Free blocks form one doubly linked list, kept in two arrays indexed by block id. Its head is given
away next; a block that still holds a cached prefix stays findable there until then:

    head -> [worthless] -> [passed by, oldest first] -> mark -> [cached, oldest use first] <- tail

Passed by are blocks that a window slid over: cached, but of use only to a prefix that ends just
behind them. Without a rank of their own those of one long prompt would push out all other prefixes.

After PagedAttention (Kwon et al. 2023, section 4.3) with the hash-chained prefix cache that engines
put on top of it; unlike those, blocks are given away by what they are worth, then by age.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from protos.block_hash import BlockHash


@dataclass(frozen=True, slots=True)
class CacheEvents:
    """Net change of the prefix cache since the last drain."""

    stored: list[BlockHash]
    removed: list[BlockHash]


class BlockPool:
    """Owned by the engine thread.

    Invariant: a block is in the free list exactly when its reference count is 0; a hash stands for
    at most one block of each group and a block for at most one hash. Every operation is O(1) per
    block. What others learn of the prefix cache are the first group's blocks: it is the one that
    sees furthest back, so a prefix is there only as far as these are.
    """

    def __init__(
        self, num_blocks: int, block_size: int, enable_prefix_caching: bool, num_groups: int = 1
    ) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a pool of {num_blocks} blocks of {block_size} tokens holds nothing")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self.num_free = num_blocks
        self._ref_counts = [0] * num_blocks
        self._hashes: list[BlockHash | None] = [None] * num_blocks
        self._groups = [0] * num_blocks  # of those with a hash
        self._cached: list[dict[BlockHash, int]] = [{} for _ in range(num_groups)]
        # One sentinel at index num_blocks closes the ring: next[sentinel] is the head, prev[...]
        # the tail. At first all blocks are worthless: sentinel -> 0 -> ... -> mark -> sentinel.
        self._mark = num_blocks + 1
        self._next = [*range(1, num_blocks), self._mark, 0, num_blocks]
        self._prev = [num_blocks, *range(num_blocks - 1), self._mark, num_blocks - 1]
        self._stored: dict[BlockHash, None] = {}
        self._removed: dict[BlockHash, None] = {}

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks with one reference each, or None if fewer are free."""
        if count > self.num_free:
            return None
        following, before, mark = self._next, self.num_blocks, self._mark
        block_ids: list[int] = []
        block_id = following[before]
        for _ in range(count):
            if block_id == mark:
                before, block_id = mark, following[mark]
            block_ids.append(block_id)
            if self._hashes[block_id] is not None:
                self._forget(block_id)
            self._ref_counts[block_id] = 1
            block_id = following[block_id]
        # The list loses its first `count` blocks in one cut, or in two around the mark.
        if before == mark:
            self._join(self.num_blocks, mark)
        self._join(before, block_id)
        self.num_free -= count
        return block_ids

    def lookup(self, block_hash: BlockHash, group: int = 0) -> int | None:
        """The block that holds this prefix's end for a group, whether in use or free."""
        return self._cached[group].get(block_hash)

    def num_free_among(self, block_ids: Iterable[int]) -> int:
        """How many of these blocks would leave the free list when shared."""
        return sum(1 for block_id in block_ids if self._ref_counts[block_id] == 0)

    def num_held_once(self, block_ids: Iterable[int]) -> int:
        """How many of these blocks one release would free."""
        return sum(1 for block_id in block_ids if self._ref_counts[block_id] == 1)

    def share(self, block_ids: Iterable[int]) -> None:
        """One more reference on blocks that `lookup` found."""
        for block_id in block_ids:
            if self._ref_counts[block_id] == 0:
                self._unlink(block_id)
            self._ref_counts[block_id] += 1

    def store(self, block_id: int, block_hash: BlockHash, group: int = 0) -> bool:
        """Make a computed block findable; False if another block stands for the hash already."""
        assert self._ref_counts[block_id] > 0 and self._hashes[block_id] is None
        cached = self._cached[group]
        if not self.enable_prefix_caching or block_hash in cached:
            return False
        cached[block_hash] = block_id
        self._hashes[block_id] = block_hash
        self._groups[block_id] = group
        if group:
            return True
        if block_hash in self._removed:
            del self._removed[block_hash]
        else:
            self._stored[block_hash] = None
        return True

    def release(self, block_ids: list[int], is_passed_by: bool = False) -> None:
        """Drop one reference each of a sequence's blocks, given in sequence order.

        Its tail becomes evictable before its head: the head is what others are likelier to share.
        """
        end = self._mark if is_passed_by else self.num_blocks
        for block_id in reversed(block_ids):
            count = self._ref_counts[block_id] - 1
            assert count >= 0, f"block {block_id} released twice"
            self._ref_counts[block_id] = count
            if count == 0:
                is_cached = self._hashes[block_id] is not None
                self._link(block_id, self._prev[end] if is_cached else self.num_blocks)

    def drain_events(self) -> CacheEvents | None:
        """What changed since the last call; None: nothing."""
        if not self._stored and not self._removed:
            return None
        events = CacheEvents(list(self._stored), list(self._removed))
        self._stored.clear()
        self._removed.clear()
        return events

    def cached_hashes(self) -> list[BlockHash]:
        return list(self._cached[0])

    def is_all_free(self) -> bool:
        return self.num_free == self.num_blocks

    def check_integrity(self) -> None:
        """Walks everything. Raises: AssertionError with what is broken."""
        free = self._walk_free()
        assert len(free) == self.num_free, f"{len(free)} blocks linked, {self.num_free} counted"
        unreferenced = {i for i, count in enumerate(self._ref_counts) if count == 0}
        assert set(free) == unreferenced, "free list and reference counts disagree"
        for group, cached in enumerate(self._cached):
            for block_hash, block_id in cached.items():
                held = self._hashes[block_id], self._groups[block_id]
                assert held == (block_hash, group), f"block {block_id} lost its hash"
        num_hashed = sum(block_hash is not None for block_hash in self._hashes)
        num_cached = sum(len(cached) for cached in self._cached)
        assert num_hashed == num_cached, "a hashed block cannot be found"

    def ref_count(self, block_id: int) -> int:
        return self._ref_counts[block_id]

    def _walk_free(self) -> list[int]:
        free: list[int] = []
        block_id = self._next[self.num_blocks]
        num_marks = 0
        while block_id != self.num_blocks:
            assert len(free) + num_marks <= self.num_blocks, "the free list is a loop"
            assert self._prev[self._next[block_id]] == block_id, f"links of {block_id} disagree"
            if block_id == self._mark:
                num_marks += 1
            else:
                free.append(block_id)
            block_id = self._next[block_id]
        assert num_marks == 1, "the mark is not in the free list"
        return free

    def _forget(self, block_id: int) -> None:
        block_hash = self._hashes[block_id]
        assert block_hash is not None
        self._hashes[block_id] = None
        group = self._groups[block_id]
        del self._cached[group][block_hash]
        if group:
            return
        if block_hash in self._stored:
            del self._stored[block_hash]
        else:
            self._removed[block_hash] = None

    def _link(self, block_id: int, after: int) -> None:
        following = self._next[after]
        self._next[after] = self._prev[following] = block_id
        self._prev[block_id] = after
        self._next[block_id] = following
        self.num_free += 1

    def _unlink(self, block_id: int) -> None:
        self._join(self._prev[block_id], self._next[block_id])
        self.num_free -= 1

    def _join(self, block_id: int, following: int) -> None:
        self._next[block_id] = following
        self._prev[following] = block_id
