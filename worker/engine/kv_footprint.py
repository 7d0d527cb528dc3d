"""How many KV blocks a sequence needs: all of its own, or those of a window that slides along it.

Where a layer's attention sees only the last tokens, its blocks before the window are of no use to
any token still to come, however long the sequence grows. Layers that see alike form groups, each
with blocks of its own (`worker.kv_groups`). Pure arithmetic; the KVCacheManager gives and takes
blocks by it, validation and the memory plan derive from it what a cache can hold.
"""

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class KVFootprint:
    """Blocks of a sequence, by its length in tokens.

    window 6, blocks of 4, 13 tokens computed: token 13 sees 8 .. 13, so two blocks are done with

        [0 1 2 3] [4 5 6 7] [8 9 10 11] [12 13 . .]
          unseen    unseen     held        held
    """

    block_size: int  # tokens
    # Of each group, widest first: the most tokens that one sees in its layers, itself included;
    # None: all.
    windows: tuple[int | None, ...] = (None,)

    def __post_init__(self) -> None:
        assert list(self.windows) == sorted(self.windows, key=_width), "groups out of order"

    @property
    def num_groups(self) -> int:
        return len(self.windows)

    def num_places(self, num_tokens: int) -> int:
        """Blocks of each group that hold so many tokens."""
        return -(-num_tokens // self.block_size)

    def num_unseen(self, num_computed: int, window: int | None) -> int:
        """Leading blocks that no token after the computed ones sees."""
        if window is None:
            return 0
        return max(0, num_computed - window + 1) // self.block_size

    def most_held(self, window: int, chunk: int) -> int:
        """A windowed group's blocks at hand so that a sequence of any length can be computed in
        chunks of so many tokens.
        """
        return self.num_places(window + chunk) + 1

    def num_held(self, num_tokens: int, chunk: int) -> int:
        """Blocks of all groups at hand so that a sequence can be computed in such chunks."""
        places = self.num_places(num_tokens)
        return sum(
            places if window is None else min(places, self.most_held(window, chunk))
            for window in self.windows
        )

    def longest(self, num_blocks: int, limit: int) -> int:
        """The most tokens, of `limit`, that one sequence can have with `num_blocks` for each group,
        all in one pool that any group takes from.
        """
        return _longest(self, num_blocks, limit)


@lru_cache(maxsize=64)
def _longest(footprint: KVFootprint, num_blocks: int, limit: int) -> int:
    def num_needed(places: int) -> int:
        """Computed token by token, each block given back as soon as nothing sees it."""
        return sum(
            places if window is None else min(places, footprint.num_places(window) + 1)
            for window in footprint.windows
        )

    num_all = num_blocks * footprint.num_groups
    places = range(1, footprint.num_places(limit) + 1)
    return min(limit, bisect_right(places, num_all, key=num_needed) * footprint.block_size)


def _width(window: int | None) -> tuple[bool, int]:
    return window is not None, -(window or 0)
