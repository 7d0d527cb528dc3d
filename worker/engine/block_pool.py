"""The ledger of KV blocks: which are free, in which order they are given away, and what they hold.

Knows ids and hashes, never tensors or requests. The KVCacheManager calls it from the engine thread.

Free blocks form one doubly linked list, kept in two arrays indexed by block id. Its head is given
away next; a block that still holds a cached prefix stays findable there until then:

    head -> [worthless blocks] -> [cached, oldest use] -> ... -> [cached, newest use] <- tail

After PagedAttention (Kwon et al. 2023, section 4.3) with the hash-chained prefix cache that engines
put on top of it; unlike those, blocks without reusable content are always given away before cached
ones.
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
    at most one block and a block for at most one hash. Every operation is O(1) per block.
    """

    def __init__(self, num_blocks: int, block_size: int, enable_prefix_caching: bool) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a pool of {num_blocks} blocks of {block_size} tokens holds nothing")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self.num_free = num_blocks
        self._ref_counts = [0] * num_blocks
        self._hashes: list[BlockHash | None] = [None] * num_blocks
        self._cached: dict[BlockHash, int] = {}
        # One sentinel at index num_blocks closes the ring: next[sentinel] is the head, prev[...]
        # the tail.
        ring = num_blocks + 1
        self._next = [(i + 1) % ring for i in range(ring)]
        self._prev = [(i - 1) % ring for i in range(ring)]
        self._stored: dict[BlockHash, None] = {}
        self._removed: dict[BlockHash, None] = {}

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks with one reference each, or None if fewer are free."""
        if count > self.num_free:
            return None
        following, sentinel = self._next, self.num_blocks
        block_ids: list[int] = []
        block_id = following[sentinel]
        for _ in range(count):
            block_ids.append(block_id)
            if self._hashes[block_id] is not None:
                self._forget(block_id)
            self._ref_counts[block_id] = 1
            block_id = following[block_id]
        # The list loses its first `count` blocks in one cut.
        following[sentinel] = block_id
        self._prev[block_id] = sentinel
        self.num_free -= count
        return block_ids

    def lookup(self, block_hash: BlockHash) -> int | None:
        """The block that holds this prefix, whether in use or free."""
        return self._cached.get(block_hash)

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

    def store(self, block_id: int, block_hash: BlockHash) -> bool:
        """Make a computed block findable; False if another block stands for the hash already."""
        assert self._ref_counts[block_id] > 0 and self._hashes[block_id] is None
        if not self.enable_prefix_caching or block_hash in self._cached:
            return False
        self._cached[block_hash] = block_id
        self._hashes[block_id] = block_hash
        if block_hash in self._removed:
            del self._removed[block_hash]
        else:
            self._stored[block_hash] = None
        return True

    def release(self, block_ids: list[int]) -> None:
        """Drop one reference each of a sequence's blocks, given in sequence order.

        Its tail becomes evictable before its head: the head is what others are likelier to share.
        """
        for block_id in reversed(block_ids):
            count = self._ref_counts[block_id] - 1
            assert count >= 0, f"block {block_id} released twice"
            self._ref_counts[block_id] = count
            if count == 0:
                self._link(block_id, at_tail=self._hashes[block_id] is not None)

    def drain_events(self) -> CacheEvents | None:
        """What changed since the last call; None: nothing."""
        if not self._stored and not self._removed:
            return None
        events = CacheEvents(list(self._stored), list(self._removed))
        self._stored.clear()
        self._removed.clear()
        return events

    def cached_hashes(self) -> list[BlockHash]:
        return list(self._cached)

    def is_all_free(self) -> bool:
        return self.num_free == self.num_blocks

    def check_integrity(self) -> None:
        """Walks everything. Raises: AssertionError with what is broken."""
        free = self._walk_free()
        assert len(free) == self.num_free, f"{len(free)} blocks linked, {self.num_free} counted"
        unreferenced = {i for i, count in enumerate(self._ref_counts) if count == 0}
        assert set(free) == unreferenced, "free list and reference counts disagree"
        for block_hash, block_id in self._cached.items():
            assert self._hashes[block_id] == block_hash, f"block {block_id} lost its hash"
        num_hashed = sum(block_hash is not None for block_hash in self._hashes)
        assert num_hashed == len(self._cached), "a hashed block cannot be found"

    def ref_count(self, block_id: int) -> int:
        return self._ref_counts[block_id]

    def _walk_free(self) -> list[int]:
        free: list[int] = []
        block_id = self._next[self.num_blocks]
        while block_id != self.num_blocks:
            assert len(free) < self.num_blocks, "the free list is a loop"
            assert self._prev[self._next[block_id]] == block_id, f"links of {block_id} disagree"
            free.append(block_id)
            block_id = self._next[block_id]
        return free

    def _forget(self, block_id: int) -> None:
        block_hash = self._hashes[block_id]
        assert block_hash is not None
        self._hashes[block_id] = None
        del self._cached[block_hash]
        if block_hash in self._stored:
            del self._stored[block_hash]
        else:
            self._removed[block_hash] = None

    def _link(self, block_id: int, at_tail: bool) -> None:
        sentinel = self.num_blocks
        after = self._prev[sentinel] if at_tail else sentinel
        before = self._next[after]
        self._next[after] = self._prev[before] = block_id
        self._prev[block_id] = after
        self._next[block_id] = before
        self.num_free += 1

    def _unlink(self, block_id: int) -> None:
        before, after = self._next[block_id], self._prev[block_id]
        self._next[after] = before
        self._prev[before] = after
        self.num_free -= 1
