"""Which replicas' series a scrape shows: those that the cluster has, and for a while those that
left it, so that their last figures are read.

Without it a gateway that outlives many replicas would tell of all of them for ever. Owned by the
event loop; GatewayMetrics asks it, the application tells it what the cluster has.
"""

import time
from collections.abc import Callable, Iterable

KEPT_S = 600.0  # a scrape or two of the slowest scraper


class LivingEngines:
    """Until it is told of a cluster for the first time, everything is shown."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen_s: dict[str, float] = {}
        self._knows_cluster = False

    def follow(self, replica_ids: Iterable[str]) -> None:
        """What the cluster has now."""
        now_s = self._clock()
        self._seen_s.update(dict.fromkeys(replica_ids, now_s))
        self._seen_s = {name: s for name, s in self._seen_s.items() if now_s - s <= KEPT_S}
        self._knows_cluster = True

    def answered(self, replica_id: str) -> None:
        """The cluster's newest word may be older than its newest replica."""
        self._seen_s[replica_id] = self._clock()

    def has(self, replica_id: str) -> bool:
        """Requests that no replica answered are counted for one without a name."""
        return not replica_id or not self._knows_cluster or replica_id in self._seen_s
