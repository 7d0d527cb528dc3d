"""The cluster's state of record: deployments, their replicas' incarnations, and what their leaders
report.

Pure: the clock is injected, nothing is awaited. The scheduler's shells feed it lifecycle events and
reports; gateways see frozen snapshots of it.
"""

from collections.abc import Callable
from enum import Enum

from cluster.config import DeploymentSpec
from cluster.fleet import Fleet
from cluster.replica_record import ReplicaRecord
from cluster.state import ClusterState, ModelFacts, ReplicaState
from worker.report import ReplicaLoad, ReplicaReport


class ReportOutcome(Enum):
    APPLIED = "applied"
    NEED_FULL = "need_full"  # applied, but cache events were lost: send everything
    UNKNOWN = "unknown"  # no such replica (yet)
    FENCED = "fenced"  # of another incarnation: its sender must not serve


class ClusterRegistry:
    """Invariants: a replica has at most one incarnation, epochs only grow, a served name belongs to
    one deployment. `version` grows with every change of structure. Owned by the scheduler's event
    loop.
    """

    def __init__(
        self, clock: Callable[[], float], report_timeout_s: float, hang_timeout_s: float
    ) -> None:
        self._clock = clock
        self._report_timeout_s = report_timeout_s
        self._hang_timeout_s = hang_timeout_s
        self._fleets: dict[str, Fleet] = {}
        self._replicas: dict[str, str] = {}  # replica -> deployment
        self._served: dict[str, str] = {}  # served name -> deployment
        self.version = 0

    def now(self) -> float:
        return self._clock()

    def add_deployment(self, spec: DeploymentSpec) -> Fleet:
        """Raises: ValueError when one of its names is taken."""
        names = {spec.name, *spec.served_names}
        taken = sorted(name for name in names if name in self._served)
        if taken:
            raise ValueError(f"already served by another deployment: {', '.join(taken)}")
        fleet = Fleet(spec, self._report_timeout_s)
        self._fleets[spec.name] = fleet
        self._served.update(dict.fromkeys(names, spec.name))
        self.version += 1
        return fleet

    def remove_deployment(self, name: str) -> None:
        fleet = self._fleets.pop(name)
        for replica_id in list(fleet.records):
            del self._replicas[replica_id]
        self._served = {served: owner for served, owner in self._served.items() if owner != name}
        self.version += 1

    def fleet(self, deployment: str) -> Fleet:
        return self._fleets[deployment]

    def fleets(self) -> list[Fleet]:
        return list(self._fleets.values())

    def resolve(self, model: str) -> str | None:
        """The deployment behind a served name."""
        return self._served.get(model)

    def record(self, replica_id: str) -> ReplicaRecord | None:
        deployment = self._replicas.get(replica_id)
        return self._fleets[deployment].records.get(replica_id) if deployment is not None else None

    def begin(self, deployment: str, replica_id: str, epoch: int, tp_size: int) -> None:
        """A new incarnation is being started. Raises: ValueError when its epoch does not grow."""
        owner = self._replicas.get(replica_id)
        if owner not in (None, deployment):
            raise ValueError(f"replica {replica_id} belongs to {owner}")
        before = self.record(replica_id)
        if before is not None and epoch <= before.epoch:
            raise ValueError(f"epoch {epoch} of {replica_id} is not after {before.epoch}")
        self._fleets[deployment].begin(replica_id, epoch, tp_size, self._clock())
        self._replicas[replica_id] = deployment
        self.version += 1

    def set_ready(
        self, replica_id: str, epoch: int, address: str, facts: ModelFacts, load: ReplicaLoad
    ) -> None:
        """The leader serves. `load` is the empty load with the sizes it told at its start."""
        record = self._current(replica_id, epoch)
        if record is None:
            return
        record.set_ready(address, load, self._clock())
        self._fleets[record.deployment].facts = facts
        self.version += 1

    def set_draining(self, replica_id: str, epoch: int) -> None:
        record = self._current(replica_id, epoch)
        if record is not None and record.state is ReplicaState.READY:
            record.state = ReplicaState.DRAINING
            self.version += 1

    def fail(self, replica_id: str, epoch: int, reason: str) -> None:
        """The incarnation is over. Late news of an older one changes nothing."""
        record = self._current(replica_id, epoch)
        if record is None or record.state is ReplicaState.DEAD:
            return
        self._fleets[record.deployment].end(record, ReplicaState.DEAD, reason)
        self.version += 1

    def forget(self, replica_id: str) -> None:
        """The replica is gone for good (scaled down, shut down)."""
        deployment = self._replicas.pop(replica_id, None)
        if deployment is not None:
            self._fleets[deployment].forget(replica_id)
            self.version += 1

    def _current(self, replica_id: str, epoch: int) -> ReplicaRecord | None:
        record = self.record(replica_id)
        return record if record is not None and record.epoch == epoch else None

    def apply(self, report: ReplicaReport) -> ReportOutcome:
        record = self.record(report.replica_id)
        if record is None:
            return ReportOutcome.UNKNOWN
        is_over = record.state in (ReplicaState.DEAD, ReplicaState.HUNG)
        if record.epoch != report.epoch or is_over:
            return ReportOutcome.FENCED
        is_complete = self._fleets[record.deployment].apply(record, report, self._clock())
        if report.draining:
            self.set_draining(record.replica_id, record.epoch)
        return ReportOutcome.APPLIED if is_complete else ReportOutcome.NEED_FULL

    def tick(self) -> list[tuple[str, int]]:
        """Expire what is due; returns (replica_id, epoch) of the replicas found hung just now."""
        now = self._clock()
        hung: list[tuple[str, int]] = []
        for fleet in self._fleets.values():
            for record in fleet.records.values():
                record.expire_reservations(now)
                serves = record.state in (ReplicaState.READY, ReplicaState.DRAINING)
                if serves and record.stalled_s(now) >= self._hang_timeout_s:
                    fleet.end(record, ReplicaState.HUNG, _hang_reason(record.stalled_s(now)))
                    hung.append((record.replica_id, record.epoch))
        self.version += len(hung)
        return hung

    def silent(self, age_s: float) -> list[tuple[str, int]]:
        """Serving replicas whose leader has not reported for longer than `age_s`."""
        now = self._clock()
        return [
            (record.replica_id, record.epoch)
            for fleet in self._fleets.values()
            for record in fleet.records.values()
            if record.state in (ReplicaState.READY, ReplicaState.DRAINING)
            and record.report_age_s(now) > age_s
        ]

    def num_shards(self) -> int:
        return sum(r.tp_size for fleet in self._fleets.values() for r in fleet.records.values())

    def snapshot(self) -> ClusterState:
        now = self._clock()
        return ClusterState(self.version, tuple(f.info(now) for f in self._fleets.values()))


def _hang_reason(stalled_s: float) -> str:
    return f"hung: work pending and no step for {stalled_s:.1f} s"
