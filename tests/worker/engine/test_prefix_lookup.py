"""The longest prefix that all groups have, against its definition."""

from hypothesis import given
from hypothesis import strategies as st

from protos.block_hash import BlockHash
from worker.engine.block_pool import BlockPool
from worker.engine.block_rows import BlockRows
from worker.engine.kv_footprint import KVFootprint
from worker.engine.prefix_lookup import NULL_BLOCK, PrefixLookup

BLOCK_SIZE = 4
NUM_PLACES = 12
HASHES = [BlockHash(bytes([i] * 16)) for i in range(NUM_PLACES)]
WINDOWS: list[tuple[int | None, ...]] = [
    (None,), (6,), (1,), (None, 6), (None, None, 9), (9, 4), (None, 13, 13, 1),
]  # fmt: skip


@given(
    windows=st.sampled_from(WINDOWS),
    missing=st.sets(st.tuples(st.integers(0, 3), st.integers(0, NUM_PLACES - 1)), max_size=9),
    num_hashes=st.integers(0, NUM_PLACES),
)
def test_found_prefix_is_the_longest_that_all_groups_can_serve(
    windows: tuple[int | None, ...], missing: set[tuple[int, int]], num_hashes: int
) -> None:
    footprint = KVFootprint(BLOCK_SIZE, windows)
    pool = BlockPool(NUM_PLACES * len(windows) + 1, BLOCK_SIZE, True, len(windows))
    assert pool.allocate(1) == [NULL_BLOCK]  # so that no block that is found has its number
    cached = {
        (group, place): (pool.allocate(1) or [])[0]
        for group in range(len(windows))
        for place in range(NUM_PLACES)
        if (group, place) not in missing
    }
    for (group, place), block_id in cached.items():
        assert pool.store(block_id, HASHES[place], group)

    def first_needed(group: int, length: int) -> int:
        window = windows[group]
        first = 0 if window is None else max(0, length * BLOCK_SIZE - window + 1) // BLOCK_SIZE
        return max(0, min(first, length - 1))  # the last one even if nothing sees it

    def is_served(length: int) -> bool:
        return all(
            (group, place) in cached
            for group in range(len(windows))
            for place in range(first_needed(group, length), length)
        )

    longest = max(length for length in range(num_hashes + 1) if is_served(length))
    found = PrefixLookup(pool, footprint, BlockRows(footprint)).find(HASHES[:num_hashes])
    assert found == [
        cached[group, place] if place >= first_needed(group, longest) else NULL_BLOCK
        for place in range(longest)
        for group in range(len(windows))
    ]
