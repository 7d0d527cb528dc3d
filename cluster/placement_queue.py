"""When and where a request starts: one deployment's central queue with late binding.

A request waits here, not in an engine, until a replica can start it; then policy, prefixes and the
order of the fair queue decide. It may wait a little for a busy replica that holds its prefix and
would still be done sooner. Pure: the caller passes the time and pumps after every event. The desk
owns one per deployment.
"""

import heapq
import math
from collections.abc import Hashable

from cluster.binding import Binding, Startable
from cluster.drain_rate import DrainRate
from cluster.fair_queue import FairQueue, Waiting
from cluster.fleet import Fleet
from cluster.placement_request import Decision, Placed, PlacementRequest, RefusalReason, Refused
from cluster.policies import Policy
from cluster.queue_settings import QueueSettings


class PlacementQueue:
    """Invariant: every request offered is answered exactly once, by a decision, unless it is
    cancelled.

    Owned by the scheduler's event loop. Time must not run backwards between calls.
    """

    def __init__(self, fleet: Fleet, policy: Policy, settings: QueueSettings) -> None:
        self._fleet = fleet
        self._policy = policy
        self._settings = settings
        self._queue = FairQueue()
        self._deadlines: list[tuple[float, int, Hashable]] = []
        self._num_offered = 0
        self._startable = Startable(settings)
        self._drain_rate = DrainRate()
        self._available_t = -math.inf  # when a replica was last seen that could take requests

    def __len__(self) -> int:
        return len(self._queue)

    def oldest_wait_s(self, now: float) -> float:
        oldest = next(self._queue.in_arrival_order(), None)
        return now - oldest.arrival_t if oldest is not None else 0.0

    def offer(self, request: PlacementRequest, now: float) -> list[Decision]:
        """Take a request in, or refuse at once: it, or (in a full queue) one that has less right to
        wait.
        """
        if self._is_hopeless(request, now):
            message = "the queue is too long for this request's deadline"
            return [self._refusal(request, RefusalReason.HOPELESS, message, now)]
        refused: list[Decision] = []
        if len(self._queue) >= self._settings.max_queued:
            displaced = self._queue.displaced_by(request.tenant)
            victim = displaced.request if displaced is not None else request
            self._queue.remove(victim.key)
            refused = [self._refusal(victim, RefusalReason.FULL, "the queue is full", now)]
            if victim is request:
                return refused
        self._admit(request, now)
        return refused

    def _admit(self, request: PlacementRequest, now: float) -> None:
        deadline = now + request.timeout_s if request.timeout_s is not None else math.inf
        self._queue.add(Waiting(request, now, deadline))
        if request.timeout_s is not None:
            self._num_offered += 1
            heapq.heappush(self._deadlines, (deadline, self._num_offered, request.key))

    def cancel(self, key: Hashable) -> bool:
        """False: it does not wait here (any more)."""
        return self._queue.remove(key) is not None

    def refuse_all(self, message: str) -> list[Decision]:
        decisions: list[Decision] = []
        for waiting in list(self._queue.in_arrival_order()):
            self._queue.remove(waiting.request.key)
            decisions.append(Refused(waiting.request.key, RefusalReason.UNAVAILABLE, message, 1.0))
        return decisions

    def pump(self, now: float) -> list[Decision]:
        """All decisions that are due. Call after every offer, report and change of replicas, and
        now and then for the deadlines.
        """
        decisions = self._expired(now)
        if not self._queue:
            return decisions
        loads = {load.replica_id: load for load in self._fleet.loads(now)}
        if not loads:
            return decisions + self._unavailable(now)
        self._available_t = now
        binding = Binding(self._fleet, self._policy, self._startable, loads, now)
        decisions += binding.run(self._queue)
        num_placed = sum(isinstance(decision, Placed) for decision in decisions)
        self._drain_rate.record(num_placed, is_saturated=len(self._queue) > 0, now=now)
        return decisions

    def _expired(self, now: float) -> list[Decision]:
        expired: list[Decision] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, _, key = heapq.heappop(self._deadlines)
            waiting = self._queue.get(key)
            if waiting is None or waiting.deadline > deadline:
                continue  # gone, or another request under the same key: its own entry follows
            self._queue.remove(key)
            message = "the deadline passed while waiting for a replica"
            expired.append(Refused(key, RefusalReason.EXPIRED, message))
        return expired

    def _unavailable(self, now: float) -> list[Decision]:
        """No replica can serve: give up on those that have waited long enough for one to come
        (back).
        """
        since = now - self._settings.unavailable_s
        if self._available_t > since:
            return []
        late = [w for w in self._queue.in_arrival_order() if w.arrival_t <= since]
        for waiting in late:
            self._queue.remove(waiting.request.key)
        message = f"no replica of {self._fleet.spec.name} can serve now"
        return [
            Refused(waiting.request.key, RefusalReason.UNAVAILABLE, message, 5.0)
            for waiting in late
        ]

    def _is_hopeless(self, request: PlacementRequest, now: float) -> bool:
        if request.timeout_s is None:
            return False
        if request.timeout_s <= 0:
            return True
        wait_s = self._predicted_wait_s(request, now)
        return wait_s is not None and wait_s > request.timeout_s * self._settings.hopeless_factor

    def _predicted_wait_s(self, request: PlacementRequest, now: float) -> float | None:
        rate = self._drain_rate.per_s(now)
        if rate is None:
            return None
        return self._queue.num_ahead(request.priority, request.tenant) / rate

    def _refusal(
        self, request: PlacementRequest, reason: RefusalReason, message: str, now: float
    ) -> Refused:
        wait_s = self._predicted_wait_s(request, now)
        retry_after_s = min(60.0, max(1.0, wait_s if wait_s is not None else 1.0))
        return Refused(request.key, reason, message, retry_after_s)
