"""Who is next: waiting requests ordered by priority, then by fair share between tenants.

Fair share is the virtual token counter of Sheng et al. 2024 ("Fairness in Serving Large Language
Models"): the tenant served least so far goes first, and one that was away gets no credit for it. We
charge at placement, when the output is not known, so output counts as an estimate. Within a tenant
the placement queue chooses; it owns this object.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import islice

from cluster.placement_request import PlacementRequest

EXPECTED_OUTPUT_TOKENS = 256  # a client's max_tokens is a bound, rarely a forecast
MAX_IDLE_TENANTS = 1024  # counters kept of tenants that wait for nothing


@dataclass(frozen=True, slots=True)
class Waiting:
    request: PlacementRequest
    arrival_t: float
    deadline: float  # inf: none


class FairQueue:
    """Invariant: a request is in exactly one (priority, tenant) lane, in order of arrival, and in
    `_by_key`; empty lanes and levels do not exist. Owned by the scheduler's event loop.
    """

    def __init__(self) -> None:
        self._levels: dict[int, dict[str, dict[Hashable, Waiting]]] = {}
        self._by_key: dict[Hashable, Waiting] = {}
        self._num_waiting: dict[str, int] = {}  # by tenant, over all levels
        self._served: dict[str, float] = {}  # virtual tokens by tenant

    def __len__(self) -> int:
        return len(self._by_key)

    def get(self, key: Hashable) -> Waiting | None:
        return self._by_key.get(key)

    def in_arrival_order(self) -> Iterator[Waiting]:
        return iter(self._by_key.values())

    def add(self, waiting: Waiting) -> None:
        request = waiting.request
        assert request.key not in self._by_key
        if request.tenant not in self._num_waiting:
            self._enter(request.tenant)
        self._by_key[request.key] = waiting
        lane = self._levels.setdefault(request.priority, {}).setdefault(request.tenant, {})
        lane[request.key] = waiting
        self._num_waiting[request.tenant] += 1

    def _enter(self, tenant: str) -> None:
        """A tenant with nothing waiting comes (back): it starts level with the least served one
        here.
        """
        if not self._num_waiting:
            self._served.clear()  # nobody waits: there is nothing to be fair about
        floor = min((self._served[t] for t in self._num_waiting), default=0.0)
        if len(self._served) > MAX_IDLE_TENANTS + len(self._num_waiting):
            # Those at or below the floor would be lifted to it on their return anyway.
            self._served = {
                t: n for t, n in self._served.items() if n > floor or t in self._num_waiting
            }
        self._served[tenant] = max(floor, self._served.get(tenant, 0.0))
        self._num_waiting[tenant] = 0

    def remove(self, key: Hashable) -> Waiting | None:
        waiting = self._by_key.pop(key, None)
        if waiting is None:
            return None
        request = waiting.request
        lanes = self._levels[request.priority]
        lane = lanes[request.tenant]
        del lane[key]
        if not lane:
            del lanes[request.tenant]
        if not lanes:
            del self._levels[request.priority]
        self._num_waiting[request.tenant] -= 1
        if not self._num_waiting[request.tenant]:
            del self._num_waiting[request.tenant]
        return waiting

    def charge(self, tenant: str, uncached_tokens: int, max_tokens: int) -> None:
        """A request of this tenant is being placed. Call before it is removed."""
        self._served[tenant] += uncached_tokens + min(max_tokens, EXPECTED_OUTPUT_TOKENS)

    def lanes(self, window: int) -> Iterator[list[Waiting]]:
        """The oldest `window` requests of each lane; lanes by priority, then least served tenant
        first.

        Each list is a copy: the caller may remove what it got.
        """
        for priority in sorted(self._levels):
            lanes = self._levels.get(priority, {})
            for tenant in sorted(lanes, key=self._served.__getitem__):
                if tenant in lanes:
                    yield list(islice(lanes[tenant].values(), window))

    def num_ahead(self, priority: int, tenant: str) -> int:
        """About how many would be placed before a new request of this tenant and priority."""
        total = sum(
            len(lane)
            for level, lanes in self._levels.items()
            if level <= priority
            for lane in lanes.values()
        )
        tenants = len(self._num_waiting) + (tenant not in self._num_waiting)
        return min(total, (self._num_waiting.get(tenant, 0) + 1) * tenants - 1)

    def displaced_by(self, tenant: str) -> Waiting | None:
        """Whose place a request of `tenant` may take in a full queue: the newest, least urgent
        request of the tenant that fills most of it; None if `tenant` itself has as much waiting.
        """
        greediest = max(self._num_waiting, key=self._num_waiting.__getitem__, default=None)
        if greediest is None:
            return None
        if self._num_waiting[greediest] <= self._num_waiting.get(tenant, 0) + 1:
            return None
        level = max(p for p, lanes in self._levels.items() if greediest in lanes)
        return next(reversed(self._levels[level][greediest].values()))
