"""Gives requests their KV blocks, found in the prefix cache or new, and takes them back.

Knows requests and the BlockPool, not why a request is admitted or preempted: the BatchScheduler
decides.
"""

from protos.block_hash import BlockHash, hash_block, hash_full_blocks
from worker.engine.block_pool import BlockPool
from worker.engine.kv_footprint import KVFootprint
from worker.engine.request import Request

# Stands in block tables for blocks that no token sees any more: a valid id, never read.
NULL_BLOCK = 0


class KVCacheManager:
    """Owned by the engine thread.

    Invariant: a request holds the blocks of all its computed tokens that a further token sees
    (`block_ids[num_released_blocks:]`), and only full blocks whose tokens are computed are offered
    to the prefix cache.
    """

    def __init__(
        self, pool: BlockPool, window: int | None = None, max_num_batched_tokens: int = 1
    ) -> None:
        """`window`: see `KVFootprint`; the tokens of a step count where there is one."""
        self.pool = pool
        self._block_size = pool.block_size
        self._footprint = KVFootprint(pool.block_size, window)
        self._max_chunk = max_num_batched_tokens

    def hash_prompt(self, request: Request) -> None:
        """Fill in the hash chain of the tokens known at arrival."""
        if self.pool.enable_prefix_caching:
            request.block_hashes = hash_full_blocks(
                request.token_ids, self._block_size, request.parent_hash
            )

    def find_cached(self, request: Request) -> list[int]:
        """Blocks that hold the request's longest cached prefix, short of its last token; those
        that nothing sees any more need not be there and are NULL_BLOCK.

        The last token is always computed: its logits are what the next one is sampled from.
        """
        if request.num_wanted_prompt_logprobs:
            return []  # those need the logits of every prompt position
        hashes = request.block_hashes[: self._max_cached_blocks(request)]
        is_windowed = self._footprint.window is not None
        found = self._cached_window(hashes) if is_windowed else self._cached_from_start(hashes)
        request.num_hit_tokens = len(found) * self._block_size
        return found

    def _cached_from_start(self, hashes: list[BlockHash]) -> list[int]:
        found: list[int] = []
        for block_hash in hashes:
            block_id = self.pool.lookup(block_hash)
            if block_id is None:
                break
            found.append(block_id)
        return found

    def _cached_window(self, hashes: list[BlockHash]) -> list[int]:
        """The longest prefix whose seen blocks are cached: a hash stands for all tokens before it.

        Looks at a window's first block first: a miss there rules out all prefixes that see it, so
        a long prompt of which nothing is cached costs one look-up a window.
        """
        num_blocks = len(hashes)
        while num_blocks:
            first_seen = min(
                self._footprint.num_unseen(num_blocks * self._block_size), num_blocks - 1
            )
            found = self._cached_from_start(hashes[first_seen:num_blocks])
            if first_seen + len(found) == num_blocks:
                return [NULL_BLOCK] * first_seen + found
            num_blocks = first_seen + len(found)
        return []

    def shareable_hashes(self, request: Request) -> list[BlockHash]:
        """Hashes of the blocks that the request could take over from another."""
        if request.num_wanted_prompt_logprobs:
            return []
        return request.block_hashes[: self._max_cached_blocks(request)]

    def admit(self, request: Request, cached_blocks: list[int], num_kept_free: int) -> bool:
        """Give a request blocks for all its tokens, or for what is held of them at once; False if
        fewer than `num_kept_free` would be left.

        The whole of it at once, so that a half-computed prompt never has to fight for its next
        block.
        """
        if self._num_taken(request, cached_blocks) + num_kept_free > self.pool.num_free:
            return False
        num_computed = len(cached_blocks) * self._block_size
        num_unseen = self._footprint.num_unseen(num_computed)
        self.pool.share(cached_blocks[num_unseen:])
        request.block_ids = list(cached_blocks)
        request.capacity = num_computed
        request.num_released_blocks = num_unseen
        request.num_blocks_cached = len(cached_blocks)
        request.num_computed_tokens = num_computed
        request.next_cache_at = num_computed + self._block_size
        self._append(request, self._num_new(request, cached_blocks))
        request.new_block_ids = list(request.block_ids)
        return True

    def num_missing(self, request: Request, num_kept_free: int) -> int:
        """Free blocks that are lacking for `admit`; none if not positive."""
        taken = self._num_taken(request, self.find_cached(request))
        return taken + num_kept_free - self.pool.num_free

    def _num_taken(self, request: Request, cached_blocks: list[int]) -> int:
        """Free blocks that its admission takes."""
        num_unseen = self._footprint.num_unseen(len(cached_blocks) * self._block_size)
        num_shared = self.pool.num_free_among(cached_blocks[num_unseen:])
        return self._num_new(request, cached_blocks) + num_shared

    def _num_new(self, request: Request, cached_blocks: list[int]) -> int:
        """Blocks to hold at once beside the cached ones."""
        footprint = self._footprint
        num_unseen = footprint.num_unseen(len(cached_blocks) * self._block_size)
        held = footprint.num_held(request.num_tokens, self._max_chunk)
        end = num_unseen + min(held, self.pool.num_blocks)
        return min(footprint.num_blocks(request.num_tokens), end) - len(cached_blocks)

    def extend(self, request: Request) -> None:
        """One more block. The caller has made sure that one is free."""
        self._append(request, 1)

    def extend_within(self, request: Request, num_tokens: int, num_spare: int) -> None:
        """Blocks for so many tokens more, as far as `num_spare` of them go."""
        count = min(self._footprint.num_blocks(num_tokens), num_spare)
        if count > 0:
            self._append(request, count)

    def num_own(self, request: Request) -> int:
        """Blocks that would become free with the request."""
        return self.pool.num_held_once(request.block_ids[request.num_released_blocks :])

    def _append(self, request: Request, count: int) -> None:
        new_blocks = self.pool.allocate(count)
        assert new_blocks is not None
        request.block_ids += new_blocks
        request.new_block_ids = request.new_block_ids + new_blocks
        request.capacity += count * self._block_size

    def store_computed(self, request: Request) -> list[BlockHash]:
        """Offer the blocks that have become full to the prefix cache and give back those that no
        token will see any more; returns the hashes of the former.
        """
        hashes = self._store_full(request)
        if self._footprint.window is not None:
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
        for block_id, block_hash in zip(request.block_ids[first:num_full], hashes, strict=True):
            self.pool.store(block_id, block_hash)
        return hashes

    def free(self, request: Request) -> None:
        """Take the blocks back; the request may be admitted again from its first token on."""
        self.pool.release(request.block_ids[request.num_released_blocks :])
        request.block_ids = []
        request.new_block_ids = []
        request.num_released_blocks = 0
        request.capacity = 0
        request.num_blocks_cached = 0
        request.num_computed_tokens = 0

    def _slide(self, request: Request) -> None:
        """Give back what is behind the window; a prompt still being computed takes as much again at
        once, so that nobody comes between.
        """
        num_unseen = self._footprint.num_unseen(request.num_computed_tokens)
        unseen = request.block_ids[request.num_released_blocks : num_unseen]
        if not unseen:
            return
        self.pool.release(unseen)
        request.num_released_blocks = num_unseen
        num_missing = self._footprint.num_blocks(request.num_tokens) - len(request.block_ids)
        # Fewer where others still hold what was given back.
        num_new = min(num_missing, len(unseen), self.pool.num_free)
        if num_new > 0:
            self._append(request, num_new)

    def _max_cached_blocks(self, request: Request) -> int:
        return (request.num_tokens - 1) // self._block_size

    def _extend_hashes(self, request: Request, num_blocks: int) -> None:
        hashes, size = request.block_hashes, self._block_size
        for i in range(len(hashes), num_blocks):
            parent = hashes[i - 1] if i else request.parent_hash
            hashes.append(hash_block(parent, request.token_ids[i * size : (i + 1) * size]))
