"""Stop strings over a text that arrives in pieces.

Text that may be the beginning of a stop string is held back, exactly as much as could be. The stop
string whose last character comes first wins, so the result does not depend on how text was cut.
"""

from gateway.parsers.marks import num_held


class StopStrings:
    """One choice's stop strings. Invariant: all that `push` and `finish` gave out, joined, is the
    whole text up to the first stop string. Owned by the event loop."""

    __slots__ = ("_held", "_include", "_stops", "matched")

    def __init__(self, stops: tuple[str, ...], *, include: bool = False) -> None:
        assert all(stops), "an empty stop string stops everywhere"
        self._stops = stops
        self._include = include
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """The text that is safe to show. After a match (`matched` is set) nothing more comes."""
        if self.matched is not None:
            return ""
        text = self._held + text
        found = self._first_stop(text)
        if found is not None:
            start, self.matched = found
            self._held = ""
            return text[: start + len(self.matched)] if self._include else text[:start]
        kept = num_held(text, self._stops)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self) -> str:
        """The end came without a stop string: give out what was held."""
        held, self._held = self._held, ""
        return held

    def _first_stop(self, text: str) -> tuple[int, str] | None:
        """Where the match that ends first starts; among equal ends, the longest."""
        best: tuple[int, int, str] | None = None
        for stop in self._stops:
            start = text.find(stop)
            if start >= 0 and (best is None or (start + len(stop), start) < best[:2]):
                best = (start + len(stop), start, stop)
        return None if best is None else (best[1], best[2])
