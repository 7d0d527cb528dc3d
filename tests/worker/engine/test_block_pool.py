import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.block_hash import BlockHash
from worker.engine.block_pool import BlockPool


def h(i: int) -> BlockHash:
    return BlockHash(i.to_bytes(16, "big"))


def allocate(pool: BlockPool, count: int) -> list[int]:
    block_ids = pool.allocate(count)
    assert block_ids is not None
    return block_ids


def test_allocate_refuses_more_than_free_and_changes_nothing() -> None:
    pool = BlockPool(4, 16, True)
    allocate(pool, 3)
    assert pool.allocate(2) is None
    assert pool.num_free == 1
    pool.check_integrity()


def test_tail_of_a_sequence_is_evicted_before_its_head() -> None:
    pool = BlockPool(3, 16, True)
    blocks = allocate(pool, 3)
    for i, block_id in enumerate(blocks):
        pool.store(block_id, h(i))
    pool.release(blocks)
    allocate(pool, 2)
    assert pool.lookup(h(0)) == blocks[0]
    assert pool.lookup(h(1)) is None and pool.lookup(h(2)) is None


def test_blocks_without_content_are_given_away_before_cached_ones() -> None:
    pool = BlockPool(4, 16, True)
    cached = allocate(pool, 1)
    pool.store(cached[0], h(1))
    pool.release(cached)
    others = allocate(pool, 3)
    pool.release(others)
    assert set(allocate(pool, 3)) == set(others)
    assert pool.lookup(h(1)) == cached[0]


def test_shared_block_is_free_only_after_its_last_release() -> None:
    pool = BlockPool(2, 16, True)
    blocks = allocate(pool, 1)
    pool.store(blocks[0], h(1))
    pool.share(blocks)
    pool.release(blocks)
    assert pool.num_free == 1
    pool.release(blocks)
    assert pool.num_free == 2
    with pytest.raises(AssertionError):
        pool.release(blocks)


def test_cached_free_block_comes_back_when_shared() -> None:
    pool = BlockPool(3, 16, True)
    blocks = allocate(pool, 1)
    pool.store(blocks[0], h(1))
    pool.release(blocks)
    found = pool.lookup(h(1))
    assert found == blocks[0]
    assert pool.num_free_among([found]) == 1
    pool.share([found])
    assert blocks[0] not in allocate(pool, 2)
    pool.check_integrity()


def test_second_block_of_the_same_hash_is_not_stored() -> None:
    pool = BlockPool(2, 16, True)
    first, second = allocate(pool, 2)
    assert pool.store(first, h(1))
    assert not pool.store(second, h(1))
    assert pool.lookup(h(1)) == first


def test_nothing_is_stored_with_prefix_caching_off() -> None:
    pool = BlockPool(2, 16, False)
    (block_id,) = allocate(pool, 1)
    assert not pool.store(block_id, h(1))
    assert pool.lookup(h(1)) is None and pool.drain_events() is None


def test_events_are_the_net_change_since_the_last_drain() -> None:
    pool = BlockPool(1, 16, True)

    def fill(i: int) -> None:
        blocks = allocate(pool, 1)
        pool.store(blocks[0], h(i))
        pool.release(blocks)

    fill(1)
    first = pool.drain_events()
    assert first is not None and (first.stored, first.removed) == ([h(1)], [])
    fill(2)
    fill(1)  # 1 went and came back, 2 came and went
    assert pool.drain_events() is None
    fill(3)
    last = pool.drain_events()
    assert last is not None and (last.stored, last.removed) == ([h(3)], [h(1)])
    assert pool.cached_hashes() == [h(3)]


operations = st.lists(
    st.tuples(st.sampled_from(["allocate", "share", "store", "release"]), st.integers(0, 12)),
    max_size=120,
)


@settings(max_examples=100, deadline=None)
@given(num_blocks=st.integers(1, 9), steps=operations)
def test_any_sequence_of_operations_keeps_the_books(
    num_blocks: int, steps: list[tuple[str, int]]
) -> None:
    pool = BlockPool(num_blocks, 16, True)
    tables: list[list[int]] = []
    mirror: set[BlockHash] = set()
    for name, i in steps:
        if name == "allocate":
            block_ids = pool.allocate(i % 4)
            if block_ids is not None:
                assert all(pool.ref_count(b) == 1 for b in block_ids)
                tables.append(block_ids)
        elif name == "share" and (block_id := pool.lookup(h(i))) is not None:
            pool.share([block_id])
            tables.append([block_id])
        elif name == "store" and tables and (table := tables[i % len(tables)]):
            block_id = table[0]
            if block_id not in [pool.lookup(h(k)) for k in range(13)]:
                pool.store(block_id, h(i))
        elif name == "release" and tables:
            pool.release(tables.pop(i % len(tables)))
        used = {b for table in tables for b in table}
        assert pool.num_free + len(used) == num_blocks
        pool.check_integrity()
        events = pool.drain_events()
        if events is not None:
            assert mirror.isdisjoint(events.stored) and mirror.issuperset(events.removed)
            mirror = (mirror - set(events.removed)) | set(events.stored)
        assert mirror == set(pool.cached_hashes())


def test_groups_find_their_own_blocks_by_one_hash_and_the_first_is_what_others_learn() -> None:
    pool = BlockPool(4, 16, True, num_groups=2)
    block_hash = BlockHash(b"h" * 16)
    first, second = pool.allocate(2) or []
    assert pool.store(second, block_hash, 1)
    assert pool.lookup(block_hash) is None and pool.lookup(block_hash, 1) == second
    assert pool.drain_events() is None
    assert pool.store(first, block_hash, 0)
    assert pool.lookup(block_hash) == first and pool.cached_hashes() == [block_hash]
    events = pool.drain_events()
    assert events is not None and events.stored == [block_hash]
    pool.release([second, first])  # the other group's is given away last
    pool.check_integrity()
    pool.allocate(3)
    assert pool.lookup(block_hash) is None and pool.lookup(block_hash, 1) == second
    events = pool.drain_events()
    assert events is not None and events.removed == [block_hash]
    pool.check_integrity()


def cached_and_released(pool: BlockPool, ids: range, is_passed_by: bool) -> list[int]:
    blocks = allocate(pool, len(ids))
    for i, block_id in zip(ids, blocks, strict=True):
        pool.store(block_id, h(i))
    pool.release(blocks, is_passed_by)
    return blocks


def test_blocks_that_windows_passed_by_are_evicted_before_older_prefixes() -> None:
    pool = BlockPool(8, 16, True)
    prefix = cached_and_released(pool, range(0, 3), is_passed_by=False)
    old = cached_and_released(pool, range(3, 5), is_passed_by=True)
    new = cached_and_released(pool, range(5, 7), is_passed_by=True)
    pool.check_integrity()
    order = [allocate(pool, 1)[0] for _ in range(8)]
    pool.check_integrity()
    assert order[0] not in prefix + old + new  # it holds nothing
    assert order[1:] == old[::-1] + new[::-1] + prefix[::-1]
    pool.release(order)
    pool.check_integrity()


def test_one_allocation_takes_from_both_sides_of_the_mark() -> None:
    pool = BlockPool(4, 16, True)
    prefix = cached_and_released(pool, range(0, 2), is_passed_by=False)
    passed_by = cached_and_released(pool, range(2, 4), is_passed_by=True)
    assert allocate(pool, 3) == [*passed_by[::-1], prefix[1]]
    pool.check_integrity()
    pool.release([prefix[1]])
    pool.check_integrity()
    assert pool.lookup(h(0)) == prefix[0] and pool.lookup(h(1)) is None
    pool.share([prefix[0]])  # the last before the end: the mark is its neighbour on both sides
    pool.check_integrity()
