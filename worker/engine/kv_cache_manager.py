"""Gives requests their KV blocks, found in the prefix cache or new, and takes them back.

Knows requests and the BlockPool, not why a request is admitted or preempted: the BatchScheduler
decides.
"""

from protos.block_hash import BlockHash, hash_block, hash_full_blocks
from worker.engine.block_pool import BlockPool
from worker.engine.block_rows import BlockRows
from worker.engine.kv_footprint import KVFootprint
from worker.engine.prefix_lookup import PrefixLookup
from worker.engine.request import Request


class KVCacheManager:
    """Owned by the engine thread.

    Invariant: a request holds the blocks of all its computed tokens that a further token sees, in
    each group of layers (`held`), and only full blocks whose tokens are computed are offered to the
    prefix cache. A place has a block of every group or of none.
    """

    def __init__(
        self,
        pool: BlockPool,
        windows: tuple[int | None, ...] = (None,),
        max_chunk: int = 1,
    ) -> None:
        """`windows`: see `KVFootprint`; `max_chunk`: tokens that may be computed of a sequence
        before what is behind its windows comes back.
        """
        self.pool = pool
        self.blocks_per_place = len(windows)
        self._block_size = pool.block_size
        self._footprint = KVFootprint(pool.block_size, windows)
        self._rows = BlockRows(self._footprint)
        self._prefixes = PrefixLookup(pool, self._footprint, self._rows)
        # Of each windowed kind: the blocks of one group.
        self._most_held = [
            (kind, self._footprint.most_held(kind.window, max_chunk))
            for kind in self._rows.windowed
            if kind.window is not None
        ]

    def hash_prompt(self, request: Request) -> None:
        """Fill in the hash chain of the tokens known at arrival."""
        if self.pool.enable_prefix_caching:
            request.block_hashes = hash_full_blocks(
                request.token_ids, self._block_size, request.parent_hash
            )

    def find_cached(self, request: Request) -> list[int]:
        """Rows of blocks that hold the request's longest cached prefix, short of its last token;
        those that nothing sees any more need not be there and are NULL_BLOCK.

        The last token is always computed: its logits are what the next one is sampled from.
        """
        found = self._prefixes.find(self.shareable_hashes(request))
        request.num_hit_tokens = self._num_tokens(found)
        return found

    def shareable_hashes(self, request: Request) -> list[BlockHash]:
        """Hashes of the blocks that the request could take over from another."""
        if request.num_wanted_prompt_logprobs:
            return []  # those need the logits of every prompt position
        return request.block_hashes[: (request.num_tokens - 1) // self._block_size]

    def admit(self, request: Request, cached_blocks: list[int], num_kept_free: int) -> bool:
        """Give a request blocks for all its tokens, or for what is held of them at once; False if
        fewer than `num_kept_free` would be left.

        The whole of it at once, so that a half-computed prompt never has to fight for its next
        block: where windowed groups get theirs as they slide, the others' are reserved.
        """
        if self._num_taken(request, cached_blocks) + num_kept_free > self.pool.num_free:
            return False
        num_computed = self._num_tokens(cached_blocks)
        self.pool.share(self._rows.held(cached_blocks, num_computed))
        request.block_ids = list(cached_blocks)
        request.capacity = num_computed
        request.released_at = num_computed
        request.num_found_blocks = request.num_blocks_cached = num_computed // self._block_size
        request.num_computed_tokens = num_computed
        request.next_cache_at = num_computed + self._block_size
        num_places, num_reserved = self._num_new(request, num_computed)
        self._reserve(request, num_reserved)
        self._append(request, num_places)
        request.new_block_ids = list(request.block_ids)
        return True

    def num_missing(self, request: Request, num_kept_free: int) -> int:
        """Free blocks that are lacking for `admit`; none if not positive."""
        taken = self._num_taken(request, self.find_cached(request))
        return taken + num_kept_free - self.pool.num_free

    def _num_taken(self, request: Request, cached_blocks: list[int]) -> int:
        """Free blocks that its admission takes."""
        num_computed = self._num_tokens(cached_blocks)
        num_shared = self.pool.num_free_among(self._rows.held(cached_blocks, num_computed))
        num_places, num_reserved = self._num_new(request, num_computed)
        per_place = self._rows.num_windowed if num_reserved else self.blocks_per_place
        return num_places * per_place + num_reserved + num_shared

    def _num_new(self, request: Request, num_computed: int) -> tuple[int, int]:
        """Places to fill at once beside the cached ones, and blocks to reserve for those and the
        places after them.
        """
        num_cached = num_computed // self._block_size
        num_all = self._footprint.num_places(request.num_tokens)
        num_places = self._num_places(num_all, num_computed) - num_cached
        is_mixed = 0 < self._rows.num_full < self.blocks_per_place
        num_reserved = (num_all - num_cached) * self._rows.num_full if is_mixed else 0
        return num_places, num_reserved

    def _num_places(self, num_all: int, num_computed: int) -> int:
        """Of the places of a sequence, how many are to have blocks when so much is computed: the
        windows of the next step's tokens, as far as the pool has room for them.
        """
        footprint, rows = self._footprint, self._rows
        num_left = self.pool.num_blocks - num_all * rows.num_full
        num_places = num_all
        for kind, most_held in self._most_held:
            num_unseen = footprint.num_unseen(num_computed, kind.window)
            num_places = min(num_places, num_unseen + most_held)
            num_left += num_unseen * kind.num_groups
        return min(num_places, num_left // rows.num_windowed) if rows.windowed else num_places

    def num_needed(self, request: Request) -> int:
        """Free blocks that `extend` takes."""
        is_reserved = bool(request.reserved_block_ids)
        return self._rows.num_windowed if is_reserved else self.blocks_per_place

    def extend(self, request: Request) -> None:
        """One more place. The caller has made sure that the blocks are free."""
        self._append(request, 1)

    def extend_within(self, request: Request, num_tokens: int, num_spare: int) -> None:
        """Blocks for so many tokens more, as far as `num_spare` of them go."""
        count = min(self._footprint.num_places(num_tokens), num_spare // self.num_needed(request))
        if count > 0:
            self._append(request, count)

    def held(self, request: Request) -> list[int]:
        """Its blocks, in sequence order; those reserved for places to come are last."""
        held = self._rows.held(request.block_ids, request.released_at)
        return held + request.reserved_block_ids if request.reserved_block_ids else held

    def num_own(self, request: Request) -> int:
        """Blocks that would become free with the request."""
        return self.pool.num_held_once(self.held(request))

    def _reserve(self, request: Request, count: int) -> None:
        reserved = self.pool.allocate(count)
        assert reserved is not None
        request.reserved_block_ids = reserved

    def _append(self, request: Request, count: int) -> None:
        new_blocks = self.pool.allocate(count * self.num_needed(request))
        assert new_blocks is not None
        if request.reserved_block_ids:
            num_full = count * self._rows.num_full
            full = request.reserved_block_ids[:num_full]
            del request.reserved_block_ids[:num_full]
            new_blocks = self._rows.merge(full, new_blocks)
        request.block_ids += new_blocks
        request.new_block_ids = request.new_block_ids + new_blocks
        request.capacity += count * self._block_size

    def store_computed(self, request: Request) -> list[BlockHash]:
        """Offer the blocks that have become full to the prefix cache and give back those that no
        token will see any more; returns the hashes of the former.
        """
        hashes = self._store_full(request)
        if self._rows.windowed:
            self._slide(request)
        return hashes

    def _store_full(self, request: Request) -> list[BlockHash]:
        first, num_full = request.num_blocks_cached, request.num_computed_tokens // self._block_size
        request.num_blocks_cached = num_full
        request.next_cache_at = (num_full + 1) * self._block_size
        if not self.pool.enable_prefix_caching:
            return []
        self._extend_hashes(request, num_full)
        hashes = request.block_hashes[first:num_full]
        width, store = self.blocks_per_place, self.pool.store
        rows = request.block_ids[first * width : num_full * width]
        for group in range(width):
            for block_id, block_hash in zip(rows[group::width], hashes, strict=True):
                store(block_id, block_hash, group)
        return hashes

    def free(self, request: Request) -> None:
        """Take the blocks back; the request may be admitted again from its first token on."""
        self.pool.release(self.held(request))
        request.block_ids = []
        request.new_block_ids = []
        request.reserved_block_ids = []
        request.released_at = 0
        request.capacity = 0
        request.num_blocks_cached = 0
        request.num_computed_tokens = 0

    def _slide(self, request: Request) -> None:
        """Give back what is behind the windows; a prompt still being computed takes as much again
        at once, so that nobody comes between.
        """
        if not self._release_unseen(request):
            return
        num_computed = request.num_computed_tokens
        num_all = self._footprint.num_places(request.num_tokens)
        num_missing = self._num_places(num_all, num_computed) - self._num_filled(request)
        # Fewer where others still hold what was given back.
        num_new = min(num_missing, self.pool.num_free // self.num_needed(request))
        if num_new > 0:
            self._append(request, num_new)

    def _release_unseen(self, request: Request) -> bool:
        """Whether there were any."""
        now = request.num_computed_tokens
        passed_by, others = self._rows.unseen_between(
            request.block_ids, request.released_at, now, request.num_found_blocks
        )
        request.released_at = now
        self.pool.release(passed_by, is_passed_by=True)
        if others:
            self.pool.release(others)
        return bool(passed_by or others)

    def _num_filled(self, request: Request) -> int:
        """Places that have blocks, or had them."""
        return request.capacity // self._block_size

    def _num_tokens(self, rows: list[int]) -> int:
        return len(rows) // self.blocks_per_place * self._block_size

    def _extend_hashes(self, request: Request, num_blocks: int) -> None:
        hashes, size = request.block_hashes, self._block_size
        for i in range(len(hashes), num_blocks):
            parent = hashes[i - 1] if i else request.parent_hash
            hashes.append(hash_block(parent, request.token_ids[i * size : (i + 1) * size]))
