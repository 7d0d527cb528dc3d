"""How many KV blocks a sequence needs: all of its own, or those of a window that slides along it.

Where every layer's attention sees only the last tokens, blocks before the window are of no use to
any token still to come, however long the sequence grows. Pure arithmetic; the KVCacheManager gives
and takes blocks by it, validation and the memory plan derive from it what a cache can hold.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KVFootprint:
    """Blocks of a sequence, by its length in tokens.

    window 6, blocks of 4, 13 tokens computed: token 13 sees 8 .. 13, so two blocks are done with

        [0 1 2 3] [4 5 6 7] [8 9 10 11] [12 13 . .]
          unseen    unseen     held        held
    """

    block_size: int  # tokens
    # The most tokens that a token sees in any layer, itself included; None: some layer sees all.
    window: int | None = None

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-num_tokens // self.block_size)

    def num_unseen(self, num_computed: int) -> int:
        """Leading blocks that no token after the computed ones sees."""
        if self.window is None:
            return 0
        return max(0, num_computed - self.window + 1) // self.block_size

    def num_held(self, num_tokens: int, chunk: int) -> int:
        """Blocks at hand so that a sequence can be computed in chunks of so many tokens."""
        whole = self.num_blocks(num_tokens)
        if self.window is None:
            return whole
        return min(whole, self.num_blocks(self.window + chunk) + 1)

    def longest(self, num_blocks: int, limit: int) -> int:
        """The most tokens, of `limit`, that one sequence can have with so many blocks."""
        if self.window is not None and num_blocks > self.num_blocks(self.window):
            return limit
        return min(limit, num_blocks * self.block_size)
