from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gateway.text.stop import StopStrings

# A small alphabet makes overlaps of stops, texts and cuts likely.
texts = st.text("abc", max_size=40)
stop_sets = st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=4).map(tuple)


def streamed(pieces: list[str], stops: tuple[str, ...], include: bool) -> tuple[str, str | None]:
    checker = StopStrings(stops, include=include)
    shown = "".join(checker.push(piece) for piece in pieces)
    if checker.matched is None:
        shown += checker.finish()
    return shown, checker.matched


def cut_whole(text: str, stops: tuple[str, ...], include: bool) -> tuple[str, str | None]:
    """The slow definition: the shortest beginning of the text that ends in a stop string."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return (text[:end] if include else text[: end - len(stop)]), stop
    return text, None


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


@given(texts, stop_sets, st.lists(st.integers(0, 100), max_size=10), st.booleans())
def test_streamed_text_is_the_whole_text_cut_at_the_first_stop(text, stops, cuts, include):
    assert streamed(pieces_of(text, cuts), stops, include) == cut_whole(text, stops, include)


@given(texts, stop_sets)
def test_only_what_may_begin_a_stop_string_is_held_back(text, stops):
    checker = StopStrings(stops)
    shown = ""
    for end, char in enumerate(text, start=1):
        shown += checker.push(char)
        if checker.matched is not None:
            return
        held = text[len(shown) : end]
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_partial_match_is_shown_once_it_cannot_go_on():
    checker = StopStrings(("\nUser:",))
    assert checker.push("hello\nUs") == "hello"
    assert checker.push("ual") == "\nUsual"
    assert checker.matched is None


def test_nothing_comes_after_a_match():
    checker = StopStrings(("END",))
    assert checker.push("a END b") == "a "
    assert checker.push("more") == ""
    assert checker.matched == "END"


def test_long_stop_strings_are_matched_over_many_pieces():
    stop = "abcdefgh" * 20
    checker = StopStrings((stop,))
    shown = "".join(checker.push(char) for char in "xy" + stop + "z")
    assert (shown, checker.matched) == ("xy", stop)
