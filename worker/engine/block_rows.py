"""How the blocks of a sequence stand in its list: a row for each place, one block of each group.

    places       0        1        2        3           groups: a sees all, b and c a window
    block_ids  a0 b0 c0 a1 b1 c1 a2 b2 c2 a3 b3 c3
    released      b0 c0                                 once no token sees place 0 through b and c

Groups come widest first, so what is still held of any row are its first blocks. With one group a
row is one block. Arithmetic over lists; the KVCacheManager owns the blocks.
"""

from dataclasses import dataclass

from worker.engine.kv_footprint import KVFootprint


@dataclass(frozen=True, slots=True)
class Kind:
    """Neighbouring groups that see alike."""

    window: int | None
    first: int  # group
    stop: int

    @property
    def num_groups(self) -> int:
        return self.stop - self.first


class BlockRows:
    """Immutable."""

    def __init__(self, footprint: KVFootprint) -> None:
        self.num_groups = footprint.num_groups
        self.kinds = _kinds(footprint.windows)
        self.windowed = [kind for kind in self.kinds if kind.window is not None]
        self.num_windowed = sum(kind.num_groups for kind in self.windowed)
        self.num_full = self.num_groups - self.num_windowed
        self._footprint = footprint

    def held(self, block_ids: list[int], num_computed: int) -> list[int]:
        """The blocks of these rows that tokens after the computed ones see, in sequence order."""
        if not self.windowed:
            return block_ids
        starts = [self._footprint.num_unseen(num_computed, kind.window) for kind in self.kinds]
        stops = [*starts[1:], len(block_ids) // self.num_groups]
        held: list[int] = []
        for kind, start, stop in zip(self.kinds, starts, stops, strict=True):
            held += self._columns(block_ids, start, stop, 0, kind.stop)
        return held

    def unseen_between(
        self, block_ids: list[int], before: int, now: int, num_found: int
    ) -> tuple[list[int], list[int]]:
        """The blocks that were seen when `before` tokens were computed and are not any more: those
        that may be of use to nobody, and the others. These are the first `num_found`, which came
        out of the prefix cache, and what the token after the last full block would see.
        """
        passed_by: list[int] = []
        others: list[int] = []
        num_unseen, columns = self._footprint.num_unseen, self._columns
        num_full = now - now % self._footprint.block_size
        for kind in self.windowed:
            start, stop = num_unseen(before, kind.window), num_unseen(now, kind.window)
            if start == stop:
                continue
            first = max(start, num_found)
            last = stop if num_full == now else max(first, num_unseen(num_full, kind.window))
            passed_by += columns(block_ids, first, last, kind.first, kind.stop)
            if start < first or last < stop:
                others += columns(block_ids, start, min(first, stop), kind.first, kind.stop)
                others += columns(block_ids, last, stop, kind.first, kind.stop)
        return passed_by, others

    def merge(self, full: list[int], windowed: list[int]) -> list[int]:
        """Rows from the blocks of their full groups and those of their windowed ones."""
        count = len(windowed) // self.num_windowed
        rows = [0] * (count * self.num_groups)
        for group in range(self.num_full):
            rows[group :: self.num_groups] = full[group :: self.num_full]
        for group in range(self.num_windowed):
            rows[self.num_full + group :: self.num_groups] = windowed[group :: self.num_windowed]
        return rows

    def _columns(
        self, block_ids: list[int], start: int, stop: int, first: int, last: int
    ) -> list[int]:
        """Of rows start .. stop - 1 the blocks of groups first .. last - 1, row by row."""
        num_groups = self.num_groups
        if last - first == num_groups:
            return block_ids[start * num_groups : stop * num_groups]
        if last - first == 1:
            return block_ids[start * num_groups + first : stop * num_groups : num_groups]
        places = range(start * num_groups, stop * num_groups, num_groups)
        return [x for place in places for x in block_ids[place + first : place + last]]


def _kinds(windows: tuple[int | None, ...]) -> list[Kind]:
    kinds: list[Kind] = []
    for group, window in enumerate(windows):
        if kinds and kinds[-1].window == window:
            kinds[-1] = Kind(window, kinds[-1].first, group + 1)
        else:
            kinds.append(Kind(window, group, group + 1))
    return kinds
