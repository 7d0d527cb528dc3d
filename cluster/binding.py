"""One pump of a placement queue: which waiting request starts where, for one moment's loads.

Late binding, holding, exclusions and the order within a tenant are decided here; who waits and who
is refused is the queue's business.
"""

import math
from collections.abc import Collection, Hashable, Mapping

from cluster.fair_queue import FairQueue, Waiting
from cluster.fleet import Fleet
from cluster.placement_request import Decision, Placed, PlacementRequest
from cluster.policies import CandidateLoad, Policy
from cluster.queue_settings import QueueSettings
from protos.block_hash import HASH_BYTES

MAX_PASSED_OVER = 256  # held requests looked at in one pump; bounds its work


class Startable:
    """Late binding: what cannot start yet is better off where every replica can still take it.

    Remembers its answer per replica until the replica's load is another object. One per queue.
    """

    def __init__(self, settings: QueueSettings) -> None:
        self.settings = settings
        self._answers: dict[str, tuple[CandidateLoad, bool]] = {}

    def __call__(self, load: CandidateLoad) -> bool:
        known = self._answers.get(load.replica_id)
        if known is None or known[0] is not load:
            known = self._answers[load.replica_id] = load, self._has_room(load)
        return known[1]

    def _has_room(self, load: CandidateLoad) -> bool:
        settings = self.settings
        slots = load.max_num_seqs + int(load.max_num_seqs * settings.slot_slack)
        backlog = max(settings.max_batched_tokens, settings.backlog_s * load.prefill_tokens_per_s)
        has_blocks = load.num_free_tokens > 0 or load.num_live == 0
        return load.num_live < slots and load.backlog_tokens < backlog and has_blocks


class Binding:
    """One pump: binds waiting requests to replicas until nothing more can start.

    Lives for one call; its loads and matches are those of this moment, kept up with its own
    placements.
    """

    def __init__(
        self,
        fleet: Fleet,
        policy: Policy,
        can_start: Startable,
        loads: dict[str, CandidateLoad],
        now: float,
    ) -> None:
        self._fleet = fleet
        self._policy = policy
        self._settings = can_start.settings
        self._can_start = can_start
        self._loads = loads
        self._now = now
        self._startable = {r for r, load in loads.items() if can_start(load)}
        self._block_size = fleet.block_size
        self._matches: dict[bytes, dict[Hashable, Mapping[str, int]]] = {}  # by first block, by key
        self._passed_over: set[Hashable] = set()  # held, or all they could use is excluded

    def run(self, queue: FairQueue) -> list[Decision]:
        decisions: list[Decision] = []
        while self._startable and len(self._passed_over) < MAX_PASSED_OVER:
            choice = self._next(queue)
            if choice is None:
                break
            decisions.append(self._bind(queue, *choice))
        return decisions

    def _next(self, queue: FairQueue) -> tuple[Waiting, str] | None:
        for lane in queue.lanes(self._settings.window + len(self._passed_over)):
            fresh = [w for w in lane if w.request.key not in self._passed_over]
            best: tuple[tuple[bool, float], Waiting, str] | None = None
            for waiting in fresh[: self._settings.window]:
                replica_id = self._choose(waiting)
                if replica_id is None:
                    self._passed_over.add(waiting.request.key)
                    continue
                rank = self._rank(waiting, replica_id)
                if best is None or rank < best[0]:
                    best = (rank, waiting, replica_id)
            if best is not None:
                return best[1], best[2]
        return None

    def _rank(self, waiting: Waiting, replica_id: str) -> tuple[bool, float]:
        """Lowest first: least uncached work, less what its waiting makes up for; the overdue by
        arrival.
        """
        waited_s = self._now - waiting.arrival_t
        if waited_s >= self._settings.overdue_s:
            return False, waiting.arrival_t
        match = self._match(waiting.request)
        uncached = self._uncached_tokens(waiting.request, match.get(replica_id, 0))
        rate = self._loads[replica_id].prefill_tokens_per_s
        return True, uncached - self._settings.aging * waited_s * rate

    def _choose(self, waiting: Waiting) -> str | None:
        """The replica to start on now; None: wait."""
        request = waiting.request
        match = self._match(request)
        policy_cost, startable = self._policy.cost, self._startable
        uncached_anywhere = self._uncached_tokens(request, 0)
        best: CandidateLoad | None = None
        best_cost = math.inf
        busy: list[CandidateLoad] = []
        for load in self._usable(waiting):
            if load.replica_id not in startable:
                busy.append(load)
                continue
            cached = match.get(load.replica_id)
            uncached = self._uncached_tokens(request, cached) if cached else uncached_anywhere
            cost = policy_cost(load, uncached)
            is_turn = cost == best_cost and best is not None and load.last_placed < best.last_placed
            if best is None or cost < best_cost or is_turn:  # equals take turns
                best, best_cost = load, cost
        if best is None or self._is_worth_holding(waiting, match, busy, best_cost):
            return None
        return best.replica_id

    def _usable(self, waiting: Waiting) -> Collection[CandidateLoad]:
        """All but the replicas that failed this request, unless there is nothing else for long. An
        incarnation that came up after the request arrived here is not the one that failed it."""
        excluded = waiting.request.excluded
        if not excluded:
            return self._loads.values()
        usable = [
            load
            for replica_id, load in self._loads.items()
            if replica_id not in excluded or load.became_ready_t > waiting.arrival_t
        ]
        if usable or self._now - waiting.arrival_t < self._settings.exclusion_s:
            return usable
        return self._loads.values()

    def _is_worth_holding(
        self,
        waiting: Waiting,
        match: Mapping[str, int],
        busy: list[CandidateLoad],
        best_cost: float,
    ) -> bool:
        """A busy replica that holds the prefix would be done sooner than the best one that is free.

        Only a backlog is worth waiting for: it shrinks at a known pace, a full house does not.
        """
        if not match or self._now - waiting.arrival_t >= self._settings.max_hold_s:
            return False
        for load in busy:
            cached = match.get(load.replica_id, 0)
            if cached and load.num_live < load.max_num_seqs:
                uncached = self._uncached_tokens(waiting.request, cached)
                if self._policy.cost(load, uncached) < best_cost:
                    return True
        return False

    def _bind(self, queue: FairQueue, waiting: Waiting, replica_id: str) -> Placed:
        request = waiting.request
        num_cached = self._match(request).get(replica_id, 0)
        uncached = self._uncached_tokens(request, num_cached)
        queue.charge(request.tenant, uncached, request.max_tokens)
        queue.remove(request.key)
        load = self._fleet.place(request, replica_id, num_cached, self._now)
        self._loads[replica_id] = load
        if not self._can_start(load):
            self._startable.discard(replica_id)
        # Those that share its first block will find more there now.
        self._matches.pop(request.packed_hashes[:HASH_BYTES], None)
        return Placed(request.key, replica_id, num_cached, self._now - waiting.arrival_t)

    def _match(self, request: PlacementRequest) -> Mapping[str, int]:
        """Cached blocks by replica."""
        if not self._policy.uses_prefixes or not request.packed_hashes:
            return {}
        siblings = self._matches.setdefault(request.packed_hashes[:HASH_BYTES], {})
        match = siblings.get(request.key)
        if match is None:
            match = siblings[request.key] = self._fleet.match(request.packed_hashes, self._now)
        return match

    def _uncached_tokens(self, request: PlacementRequest, num_cached_blocks: int) -> int:
        """At least one token of a prompt is always computed: it makes the first output."""
        return max(1, request.num_prompt_tokens - num_cached_blocks * self._block_size)
