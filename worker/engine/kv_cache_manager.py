"""Gives requests their KV blocks, found in the prefix cache or new, and takes them back.

Knows requests and the BlockPool, not why a request is admitted or preempted: the BatchScheduler
decides.
"""

from protos.block_hash import BlockHash, hash_block, hash_full_blocks
from worker.engine.block_pool import BlockPool
from worker.engine.request import Request


class KVCacheManager:
    """Owned by the engine thread.

    Invariant: a request's block table covers all its computed tokens, and only full blocks whose
    tokens are computed are offered to the prefix cache.
    """

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self._block_size = pool.block_size

    def hash_prompt(self, request: Request) -> None:
        """Fill in the hash chain of the tokens known at arrival."""
        if self.pool.enable_prefix_caching:
            request.block_hashes = hash_full_blocks(
                request.token_ids, self._block_size, request.parent_hash
            )

    def find_cached(self, request: Request) -> list[int]:
        """Blocks that hold the request's longest cached prefix, short of its last token.

        The last token is always computed: its logits are what the next one is sampled from.
        """
        if request.num_wanted_prompt_logprobs:
            return []  # those need the logits of every prompt position
        found: list[int] = []
        for block_hash in request.block_hashes[: self._max_cached_blocks(request)]:
            block_id = self.pool.lookup(block_hash)
            if block_id is None:
                break
            found.append(block_id)
        request.num_hit_tokens = len(found) * self._block_size
        return found

    def shareable_hashes(self, request: Request) -> list[BlockHash]:
        """Hashes of the blocks that the request could take over from another."""
        if request.num_wanted_prompt_logprobs:
            return []
        return request.block_hashes[: self._max_cached_blocks(request)]

    def admit(self, request: Request, cached_blocks: list[int], num_kept_free: int) -> bool:
        """Give a request blocks for all its tokens; False if fewer than `num_kept_free` would be
        left.

        The whole of it at once, so that a half-computed prompt never has to fight for its next
        block.
        """
        pool = self.pool
        num_new = self._blocks_for(request.num_tokens) - len(cached_blocks)
        if num_new + pool.num_free_among(cached_blocks) + num_kept_free > pool.num_free:
            return False
        pool.share(cached_blocks)
        new_blocks = pool.allocate(num_new)
        assert new_blocks is not None
        request.block_ids = cached_blocks + new_blocks
        request.capacity = len(request.block_ids) * self._block_size
        request.num_blocks_cached = len(cached_blocks)
        request.num_computed_tokens = len(cached_blocks) * self._block_size
        request.next_cache_at = request.num_computed_tokens + self._block_size
        return True

    def extend(self, request: Request) -> list[int]:
        """One more block. The caller has made sure that one is free."""
        new_blocks = self.pool.allocate(1)
        assert new_blocks is not None
        request.block_ids += new_blocks
        request.capacity += self._block_size
        return new_blocks

    def store_computed(self, request: Request) -> list[BlockHash]:
        """Offer the blocks that have become full to the prefix cache; returns their hashes."""
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
        self.pool.release(request.block_ids)
        request.block_ids = []
        request.capacity = 0
        request.num_blocks_cached = 0
        request.num_computed_tokens = 0

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)

    def _max_cached_blocks(self, request: Request) -> int:
        return (request.num_tokens - 1) // self._block_size

    def _extend_hashes(self, request: Request, num_blocks: int) -> None:
        hashes, size = request.block_hashes, self._block_size
        for i in range(len(hashes), num_blocks):
            parent = hashes[i - 1] if i else request.parent_hash
            hashes.append(hash_block(parent, request.token_ids[i * size : (i + 1) * size]))
