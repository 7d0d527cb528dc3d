"""Where requests for any model come in and decisions come out: the placement queues of all
deployments.

Pure. The servicer offers, cancels and pumps; the scheduler opens and closes queues with its
deployments and closes the whole desk before it goes down.
"""

from collections.abc import Callable, Hashable

from cluster.config import DeploymentSpec
from cluster.placement_queue import PlacementQueue
from cluster.placement_request import Decision, PlacementRequest, RefusalReason, Refused
from cluster.policies import POLICIES
from cluster.queue_settings import QueueSettings
from cluster.registry import ClusterRegistry
from protos.block_hash import HASH_BYTES


class PlacementDesk:
    """Invariant: a key waits in at most one queue, `_queue_of` says which. Owned by the scheduler's
    loop.
    """

    def __init__(self, registry: ClusterRegistry, clock: Callable[[], float]) -> None:
        self._registry = registry
        self._clock = clock
        self._queues: dict[str, PlacementQueue] = {}
        self._queue_of: dict[Hashable, PlacementQueue] = {}
        self._closed: str | None = None  # why nothing is taken in any more

    def open_queue(self, spec: DeploymentSpec) -> None:
        settings = QueueSettings(
            max_queued=spec.max_queued, max_batched_tokens=spec.runner.max_num_batched_tokens
        )
        fleet = self._registry.fleet(spec.name)
        self._queues[spec.name] = PlacementQueue(fleet, POLICIES[spec.policy], settings)

    def close_queue(self, deployment: str) -> None:
        """The deployment is gone. What waits there must have been answered before."""
        queue = self._queues.pop(deployment)
        assert not len(queue)

    def close(self, reason: str) -> list[Decision]:
        """Refuse what waits and whatever still comes."""
        self._closed = reason
        decisions = [d for queue in self._queues.values() for d in queue.refuse_all(reason)]
        return self._answered(decisions)

    def num_queued(self, deployment: str) -> int:
        queue = self._queues.get(deployment)
        return len(queue) if queue is not None else 0

    def oldest_wait_s(self, deployment: str) -> float:
        queue = self._queues.get(deployment)
        return queue.oldest_wait_s(self._clock()) if queue is not None else 0.0

    def offer(self, model: str, request: PlacementRequest) -> list[Decision]:
        """Take a request for a served model in; an empty list: the next `pump` decides or it
        waits.
        """
        queue = self._admissible(model, request)
        if isinstance(queue, Refused):
            return [queue]
        self._queue_of[request.key] = queue
        return self._answered(queue.offer(request, self._clock()))

    def _admissible(self, model: str, request: PlacementRequest) -> PlacementQueue | Refused:
        key = request.key
        if self._closed is not None:
            return Refused(key, RefusalReason.UNAVAILABLE, self._closed, 1.0)
        deployment = self._registry.resolve(model)
        if deployment is None:
            message = f"the model {model!r} is not deployed"
            return Refused(key, RefusalReason.UNKNOWN_MODEL, message, field="model")
        if len(request.packed_hashes) % HASH_BYTES:
            message = f"block_hashes must be {HASH_BYTES} bytes each"
            return Refused(key, RefusalReason.INVALID, message, field="block_hashes")
        assert key not in self._queue_of
        return self._queues[deployment]

    def cancel(self, key: Hashable) -> bool:
        queue = self._queue_of.pop(key, None)
        return queue is not None and queue.cancel(key)

    def pump(self) -> list[Decision]:
        now = self._clock()
        decisions = [d for queue in self._queues.values() if len(queue) for d in queue.pump(now)]
        return self._answered(decisions)

    def _answered(self, decisions: list[Decision]) -> list[Decision]:
        for decision in decisions:
            self._queue_of.pop(decision.key, None)
        return decisions
