"""The progress of several ranks that do the same at once, as one line. Pure; used by the
incarnation while its shards start.
"""


class RankProgress:
    """What each rank told last. Owned by the task that watches a start."""

    def __init__(self, num_ranks: int) -> None:
        self._told: list[tuple[str, float]] = [("nothing yet", 0.0)] * num_ranks

    def update(self, rank: int, message: str, fraction: float) -> None:
        self._told[rank] = (message, fraction)

    @property
    def fraction(self) -> float:
        """Of the rank that is furthest behind: all wait for it."""
        return min(fraction for _, fraction in self._told)

    @property
    def message(self) -> str:
        if len(self._told) == 1:
            return self._told[0][0]
        return "; ".join(f"rank {rank}: {message}" for rank, (message, _) in enumerate(self._told))
