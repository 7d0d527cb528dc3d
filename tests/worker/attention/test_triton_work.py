"""How work is cut: every key of every query is in one item, and items are as many as allowed."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from worker.attention.triton_work import Cut, Sequences, cut_work, flat_tables

SEQUENCES = st.lists(st.tuples(st.integers(1, 300), st.integers(0, 3000)), min_size=1, max_size=12)


def sequences_of(mixture: list[tuple[int, int]]) -> Sequences:
    """(query_len, history before it) of each; tables begin at multiples of 10000."""
    query_lens = np.array([query for query, _ in mixture], dtype=np.int32)
    context_lens = query_lens + np.array([history for _, history in mixture], dtype=np.int32)
    firsts = (np.cumsum(query_lens) - query_lens).astype(np.int32)
    starts = np.arange(len(mixture), dtype=np.int32) * 10000
    return Sequences(query_lens, context_lens, firsts, starts)


@given(
    mixture=SEQUENCES,
    tile_tokens=st.sampled_from([1, 4, 32, 128]),
    window=st.none() | st.integers(1, 500),
    num_extra=st.integers(0, 40),
    block_keys=st.sampled_from([16, 64]),
)
def test_items_cover_each_tile_once(
    mixture: list[tuple[int, int]],
    tile_tokens: int,
    window: int | None,
    num_extra: int,
    block_keys: int,
) -> None:
    sequences = sequences_of(mixture)
    work = cut_work(sequences, window, Cut(tile_tokens, block_keys, 2 * block_keys, num_extra))
    assert len(work.items) <= len(work.tiles) + num_extra
    assert work.num_pieces <= 2 * num_extra
    seen_tokens: list[int] = []
    first_item = num_pieces = 0
    for first_token, num_tokens, first_piece, num_items in work.tiles.tolist():
        assert num_items == 1 or first_piece == num_pieces
        assert 1 <= num_tokens <= tile_tokens
        seen_tokens += range(first_token, first_token + num_tokens)
        row = int(np.searchsorted(sequences.first_tokens, first_token, side="right")) - 1
        history = int(sequences.context_lens[row] - sequences.query_lens[row])
        position = history + first_token - int(sequences.first_tokens[row])
        expected_end = position + num_tokens
        key = 0 if window is None else max(0, position - window + 1)
        items = work.items[first_item : first_item + num_items].tolist()
        first_item += num_items
        for table, token, count, first_position, begin, end, is_whole, piece in items:
            assert (table, token, count) == (row * 10000, first_token, num_tokens)
            assert first_position == position and is_whole == (num_items == 1)
            if not is_whole:
                assert piece == num_pieces
                num_pieces += 1
            assert begin == key < end
            assert end == expected_end or (end - begin) % block_keys == 0
            key = end
        assert key == expected_end
    assert sorted(seen_tokens) == list(range(int(sequences.query_lens.sum())))


def test_one_long_history_is_cut_beside_short_ones() -> None:
    work = cut_work(sequences_of([(1, 9)] * 5 + [(1, 99999)]), None, Cut(1, 64, 128, 20))
    assert work.tiles[:, 3].tolist() == [1, 1, 1, 1, 1, 20]
    assert int((work.items[:, 5] - work.items[:, 4]).max()) <= 5056


def test_many_sequences_of_one_length_are_left_whole() -> None:
    work = cut_work(sequences_of([(1, 999)] * 200), None, Cut(1, 64, 128, 66))
    assert not work.num_pieces


def test_short_histories_are_left_whole() -> None:
    assert not cut_work(sequences_of([(1, 126)]), None, Cut(1, 64, 128, 66)).num_pieces


def test_prompts_begin_with_their_longest_tiles() -> None:
    work = cut_work(sequences_of([(300, 0)]), None, Cut(64, 64, 128, 0))
    assert (work.items[:, 5] - work.items[:, 4]).tolist() == [300, 256, 192, 128, 64]


def test_flat_tables_hold_only_what_is_used() -> None:
    tables = np.array([[5, 6, 99], [7, 99, 99], [1, 2, 3]], dtype=np.int32)
    flat, starts = flat_tables(tables, np.array([17, 16, 48], dtype=np.int32), 16)
    assert flat.tolist() == [5, 6, 7, 1, 2, 3] and starts.tolist() == [0, 2, 3]
