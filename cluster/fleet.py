"""The replicas of one deployment as placement sees them: their records and the index of their
prefixes.

The registry creates one per deployment and feeds it; the placement queue reads it through `loads`,
`match` and `place`. No policy and no order of requests here.
"""

from cluster.config import DeploymentSpec
from cluster.placement_request import PlacementRequest
from cluster.policies import CandidateLoad
from cluster.prefix_index import PrefixIndex
from cluster.replica_record import ReplicaRecord
from cluster.state import DeploymentInfo, ModelFacts, ReplicaState
from worker.report import ReplicaReport

# Before the first prompts were measured: this many full steps a second. Too high costs late binding
# for the first moments, too low leaves a fast replica idle between two reports.
GUESSED_STEPS_PER_S = 8.0


class Fleet:
    """Invariant: a replica is in the index exactly while its incarnation may serve (starting,
    ready, draining). Owned by the scheduler's event loop.
    """

    def __init__(self, spec: DeploymentSpec, report_timeout_s: float) -> None:
        self.spec = spec
        self.facts: ModelFacts | None = None
        self.records: dict[str, ReplicaRecord] = {}
        self._index = PrefixIndex()
        self._report_timeout_s = report_timeout_s
        self._num_placed = 0

    @property
    def block_size(self) -> int:
        return self.facts.block_size if self.facts else self.spec.runner.block_size

    def begin(self, replica_id: str, epoch: int, tp_size: int, now: float) -> ReplicaRecord:
        """A new incarnation: nothing of the one before counts but its history of restarts."""
        before = self.records.get(replica_id)
        rate = GUESSED_STEPS_PER_S * self.spec.runner.max_num_batched_tokens
        record = ReplicaRecord(replica_id, self.spec.name, epoch, tp_size, rate, now)
        if before is not None:
            record.num_restarts, record.reason = before.num_restarts + 1, before.reason
        self.records[replica_id] = record
        self._index.remove(replica_id)
        self._index.add(replica_id)
        return record

    def end(self, record: ReplicaRecord, state: ReplicaState, reason: str) -> None:
        """The incarnation serves no more."""
        record.state = state
        record.reason = reason
        self._index.remove(record.replica_id)

    def forget(self, replica_id: str) -> None:
        self._index.remove(replica_id)
        self.records.pop(replica_id, None)

    def apply(self, record: ReplicaRecord, report: ReplicaReport, now: float) -> bool:
        """False: events were lost, a full report is needed."""
        order = record.accepts_sequence(report)
        if order is None:
            return True
        record.apply_load(report, now)
        if report.full:
            self._index.replace(record.replica_id, report.stored_blocks)
        elif order:
            self._index.update(record.replica_id, report.stored_blocks, report.removed_blocks)
        return order

    def loads(self, now: float) -> list[CandidateLoad]:
        """Of the replicas that may take a request now: ready and heard of lately."""
        size, heard_since = self.block_size, now - self._report_timeout_s
        return [
            record.candidate(size)
            for record in self.records.values()
            if record.state is ReplicaState.READY and record.last_report_t >= heard_since
        ]

    def match(self, packed_hashes: bytes, now: float) -> dict[str, int]:
        """Leading prompt blocks cached per replica."""
        return self._index.match(packed_hashes, now)

    def place(
        self, request: PlacementRequest, replica_id: str, num_cached_blocks: int, now: float
    ) -> CandidateLoad:
        """Count a request as being there already; returns the replica's load with it."""
        record = self.records[replica_id]
        self._num_placed += 1
        record.last_placed = self._num_placed
        uncached_tokens = request.num_prompt_tokens - num_cached_blocks * self.block_size
        record.reserve(request.request_id, max(1, uncached_tokens), now)
        if self.spec.enable_prefix_caching:
            self._index.speculate(replica_id, request.packed_hashes, num_cached_blocks, now)
        return record.candidate(self.block_size)

    def info(self, now: float) -> DeploymentInfo:
        replicas = tuple(
            record.info(now, self._report_timeout_s, self._index.num_blocks(record.replica_id))
            for record in self.records.values()
        )
        return DeploymentInfo(self.spec, self.facts, replicas)
