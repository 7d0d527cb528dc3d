"""The cluster as its scheduler last described it: frozen data, and how two descriptions combine.

No protobuf (gateway/wire.py converts) and no I/O. The view keeps one snapshot; the pool and the
router read it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from gateway.tokens import ModelInfo

ReplicaState = Literal["unknown", "starting", "ready", "draining", "hung", "dead"]


@dataclass(frozen=True, slots=True)
class ReplicaAddress:
    """One incarnation of one replica: a restarted one has another epoch."""

    replica_id: str
    epoch: int
    address: str  # host:port of the leader


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    num_running: int = 0
    num_waiting: int = 0
    backlog_tokens: int = 0
    max_num_seqs: int = 0


@dataclass(frozen=True, slots=True)
class Replica:
    leader: ReplicaAddress
    state: ReplicaState
    load: ReplicaLoad = ReplicaLoad()
    report_age_s: float = 0.0

    @property
    def replica_id(self) -> str:
        return self.leader.replica_id


@dataclass(frozen=True, slots=True)
class Deployment:
    model: ModelInfo
    replicas: tuple[Replica, ...] = ()
    num_desired_replicas: int = 0
    num_queued: int = 0

    def serves(self, name: str) -> bool:
        return name == self.model.deployment or name in self.model.served_names


@dataclass(frozen=True, slots=True)
class ClusterSnapshot:
    version: int
    scheduler_id: str
    deployments: tuple[Deployment, ...] = ()

    def deployment(self, served_name: str) -> Deployment | None:
        return next((d for d in self.deployments if d.serves(served_name)), None)

    def replicas(self) -> Iterator[Replica]:
        for deployment in self.deployments:
            yield from deployment.replicas


def fill_gaps(latest: ClusterSnapshot, earlier: ClusterSnapshot) -> ClusterSnapshot:
    """`latest`, with what `earlier` knew where a scheduler that is still rebuilding its state knows
    nothing.

    A restarted scheduler relearns its replicas from the replicas; until then its silence about one
    is no statement.
    """
    known = {d.model.deployment: d for d in earlier.deployments}
    filled = [_fill(d, known.pop(d.model.deployment, None)) for d in latest.deployments]
    return replace(latest, deployments=(*filled, *known.values()))


def _fill(latest: Deployment, earlier: Deployment | None) -> Deployment:
    if earlier is None or latest.replicas:
        return latest
    return replace(latest, replicas=earlier.replicas)
