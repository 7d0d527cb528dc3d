"""What the cluster looks like at one moment: frozen snapshots, handed out by the registry.

Readers (the wire, metrics, `shoal status`) hold these and never the registry's own records.
"""

from dataclasses import dataclass, field
from enum import Enum

from cluster.config import DeploymentSpec
from worker.report import EngineCounters, ReplicaLoad


class ReplicaState(Enum):
    """DEAD covers everything between two incarnations: being torn down, waiting out a back-off."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    HUNG = "hung"  # alive, work pending, steps stand still
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What only the loaded model can tell. The same on every replica of a deployment."""

    max_model_len: int
    block_size: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    digest: str  # of the text files a gateway needs


@dataclass(frozen=True, slots=True)
class ReplicaInfo:
    replica_id: str
    deployment: str
    epoch: int
    state: ReplicaState
    address: str  # "": not serving yet
    tp_size: int
    load: ReplicaLoad = field(default_factory=ReplicaLoad)
    counters: EngineCounters = field(default_factory=EngineCounters)
    num_reserved: int = 0  # placed, not yet seen in a report
    num_indexed_blocks: int = 0
    report_age_s: float = 0.0
    is_suspect: bool = False  # ready, but silent for too long: gets no new requests
    num_restarts: int = 0
    reason: str = ""  # of the last failure


@dataclass(frozen=True, slots=True)
class DeploymentInfo:
    spec: DeploymentSpec
    facts: ModelFacts | None  # None: no replica has been ready yet
    replicas: tuple[ReplicaInfo, ...]


@dataclass(frozen=True, slots=True)
class ClusterState:
    version: int  # of the structure: loads change without it
    deployments: tuple[DeploymentInfo, ...]
