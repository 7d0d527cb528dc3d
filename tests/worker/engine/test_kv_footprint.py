"""The arithmetic of blocks against counting tokens one by one."""

import pytest

from worker.engine.kv_footprint import KVFootprint


@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("window", [1, 2, 4, 15, 16, 17, 40])
def test_unseen_blocks_hold_no_token_of_any_window_to_come(block_size: int, window: int) -> None:
    footprint = KVFootprint(block_size, (window,))
    for num_computed in range(100):
        first_seen = max(0, num_computed - window + 1)  # by the next token
        unseen = footprint.num_unseen(num_computed, window)
        assert unseen * block_size <= first_seen < (unseen + 1) * block_size


@pytest.mark.parametrize("window", [1, 5, 16, 33])
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_held_blocks_suffice_for_a_chunk_wherever_it_begins(window: int, chunk: int) -> None:
    footprint = KVFootprint(16, (window,))
    for num_computed in range(300):
        end = footprint.num_places(num_computed + chunk)
        assert end - footprint.num_unseen(num_computed, window) <= footprint.num_held(1000, chunk)


def test_sequence_is_bounded_by_the_pool_where_a_layer_sees_all() -> None:
    footprint = KVFootprint(16)
    assert footprint.num_unseen(1000, None) == 0
    assert footprint.num_held(33, 64) == 3
    assert footprint.longest(10, 1000) == 160
    assert footprint.longest(100, 1000) == 1000


def test_sequence_is_unbounded_once_the_pool_holds_a_window() -> None:
    footprint = KVFootprint(16, (64,))
    assert footprint.longest(5, 1000) == 1000
    assert footprint.longest(4, 1000) == 64  # no block left to grow into


def test_groups_are_counted_each_by_what_it_sees() -> None:
    footprint = KVFootprint(16, (None, 64, 32))
    assert footprint.num_held(48, chunk=16) == 3 + 3 + 3
    assert footprint.num_held(1600, chunk=16) == 100 + 6 + 4


@pytest.mark.parametrize("windows", [(None, 64), (None, None, 33), (None, 70, 70, 5), (64, 32)])
@pytest.mark.parametrize("num_blocks", [0, 1, 3, 6, 20, 50])
def test_longest_is_what_fits_token_by_token(
    windows: tuple[int | None, ...], num_blocks: int
) -> None:
    footprint = KVFootprint(16, windows)
    longest = footprint.longest(num_blocks, 3000)
    num_all = num_blocks * len(windows)

    def most_needed(num_tokens: int) -> int:
        held = [0]
        for computed in range(num_tokens):
            end = footprint.num_places(computed + 1)
            held.append(sum(end - footprint.num_unseen(computed // 16 * 16, w) for w in windows))
        return max(held)

    assert most_needed(longest) <= num_all
    if longest < 3000:
        assert most_needed(longest + 1) > num_all


def test_groups_come_widest_first() -> None:
    with pytest.raises(AssertionError, match="out of order"):
        KVFootprint(16, (64, None))
