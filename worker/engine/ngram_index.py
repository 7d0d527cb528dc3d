"""Where in a sequence its last tokens occurred before: what followed there may follow again.

One index a request, kept up to date token by token and never rebuilt. Knows tokens only; the
Speculator asks it. (Prompt lookup decoding, Saxena 2023; the chains are those of LZ77 compressors.)
"""

# Earlier occurrences looked at for the one with the longest common past.
_MAX_CANDIDATES = 8


class NgramIndex:
    """Invariant: of the first `num_indexed` tokens, each place with `min_n` tokens before it is in
    the chain of those tokens' hash, latest first. O(1) a token and a look-up.
    """

    __slots__ = ("_earlier", "_latest", "_max_n", "_min_n", "num_indexed")

    def __init__(self, min_n: int, max_n: int) -> None:
        assert 1 <= min_n <= max_n
        self.num_indexed = 0
        self._min_n = min_n
        self._max_n = max_n
        self._latest: dict[int, int] = {}
        self._earlier: list[int] = []  # by place, from min_n on: the place before it; -1: none

    def extend(self, token_ids: list[int], most: int) -> bool:
        """Takes in up to `most` new tokens; True once all of them are in."""
        size, latest, earlier = self._min_n, self._latest, self._earlier
        stop = min(self.num_indexed + most, len(token_ids))
        for place in range(max(self.num_indexed, size), stop):
            key = hash(tuple(token_ids[place - size : place]))
            earlier.append(latest.get(key, -1))
            latest[key] = place
        self.num_indexed = stop
        return stop == len(token_ids)

    def propose(self, token_ids: list[int], count: int) -> list[int]:
        """The `count` tokens that followed the longest earlier occurrence of the last ones, none
        if there is no such occurrence. All of `token_ids` must have been taken in.
        """
        place = self._find(token_ids)
        if place < 0:
            return []
        found = token_ids[place : place + count]
        # The occurrence may run into the end, as in a repetition: then it goes on repeating.
        period = len(token_ids) - place
        while len(found) < count:
            found += found[len(found) - period :][: count - len(found)]
        return found

    def _find(self, token_ids: list[int]) -> int:
        """The place behind the longest match, the latest of equal ones; -1: none."""
        end, size = len(token_ids), self._min_n
        if end < size:
            return -1
        best, longest = -1, 0
        place = self._latest.get(hash(tuple(token_ids[end - size :])), -1)
        for _ in range(_MAX_CANDIDATES):
            if place < 0 or longest == self._max_n:
                break
            length = self._common(token_ids, place, end)
            if length > longest:
                best, longest = place, length
            place = self._earlier[place - size]
        return best

    def _common(self, token_ids: list[int], place: int, end: int) -> int:
        """How many tokens before both places are equal, up to `max_n`; 0 below `min_n`."""
        length, limit = 0, min(self._max_n, place)
        while length < limit and token_ids[place - 1 - length] == token_ids[end - 1 - length]:
            length += 1
        return length if length >= self._min_n else 0
