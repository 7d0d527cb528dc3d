"""Looking for marks in a text that arrives in pieces. Used by everything that reads answers."""

from collections.abc import Iterable


def first_mark(text: str, marks: Iterable[str]) -> tuple[int, str] | None:
    """Where the mark that begins first begins; of several there, the longest."""
    places = [(text.find(mark), -len(mark), mark) for mark in marks]
    found = [place for place in places if place[0] >= 0]
    if not found:
        return None
    start, _, mark = min(found)
    return start, mark


def num_held(text: str, marks: Iterable[str]) -> int:
    """The length of the longest end of `text` that begins a mark."""
    longest = 0
    for mark in marks:
        start = text.find(mark[0], max(len(text) - len(mark) + 1, 0))
        while start >= 0 and len(text) - start > longest:
            if mark.startswith(text[start:]):
                longest = len(text) - start
                break
            start = text.find(mark[0], start + 1)
    return longest
