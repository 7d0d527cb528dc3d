from hypothesis import given
from hypothesis import strategies as st

from worker.engine.ngram_index import NgramIndex


def indexed(tokens: list[int], min_n: int = 2, max_n: int = 4) -> NgramIndex:
    index = NgramIndex(min_n, max_n)
    assert index.extend(tokens, len(tokens))
    return index


def test_what_followed_before_is_proposed() -> None:
    tokens = [1, 2, 3, 4, 5, 9, 2, 3]
    assert indexed(tokens).propose(tokens, 3) == [4, 5, 9]


def test_nothing_is_proposed_for_what_is_new() -> None:
    tokens = [1, 2, 3, 4, 5]
    assert indexed(tokens).propose(tokens, 3) == []
    assert indexed([7]).propose([7], 3) == []


def test_longest_common_past_wins_over_a_later_one() -> None:
    tokens = [5, 1, 2, 3, 8, 9, 2, 3, 7, 5, 1, 2, 3]
    assert indexed(tokens).propose(tokens, 1) == [8]


def test_latest_of_equal_ones_wins() -> None:
    tokens = [1, 2, 7, 1, 2, 8, 1, 2]
    assert indexed(tokens).propose(tokens, 1) == [8]


def test_repetition_goes_on_repeating() -> None:
    tokens = [4, 4, 4]
    assert indexed(tokens).propose(tokens, 5) == [4] * 5
    tokens = [1, 2, 3, 1, 2, 3]
    assert indexed(tokens).propose(tokens, 8) == [1, 2, 3, 1, 2, 3, 1, 2]


def test_long_prompt_is_taken_in_piece_by_piece() -> None:
    tokens = [*range(100), 10, 11]
    index = NgramIndex(2, 4)
    assert [index.extend(tokens, 40) for _ in range(3)] == [False, False, True]
    assert index.propose(tokens, 2) == [12, 13]


@given(
    st.lists(st.integers(0, 3), max_size=60),
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(1, 9),
    st.integers(1, 20),
)
def test_index_grown_in_any_pieces_finds_what_a_search_finds(
    tokens: list[int], min_n: int, more: int, count: int, piece: int
) -> None:
    max_n = min_n + more
    index = NgramIndex(min_n, max_n)
    for end in range(len(tokens) + 1):
        while not index.extend(tokens[:end], piece):
            pass
    proposed = index.propose(tokens, count)
    assert len(proposed) in (0, count)
    places = [p for p in range(min_n, len(tokens)) if tokens[p - min_n : p] == tokens[-min_n:]]
    assert bool(proposed) == bool(places)
    if proposed:
        # It continues one of the earlier occurrences, read on over the end of what is known.
        def continuation(place: int) -> list[int]:
            text = list(tokens)
            for i in range(count):
                text.append(text[place + i])
            return text[len(tokens) :]

        assert proposed in [continuation(place) for place in places]
