"""Small worlds for the tests of the pure core: a clock that is driven, a registry with ready
replicas.
"""

from collections.abc import Iterable
from typing import Any

from cluster.config import DeploymentSpec
from cluster.placement_request import Placed, PlacementRequest
from cluster.registry import ClusterRegistry, ReportOutcome
from cluster.state import ModelFacts
from protos.block_hash import BlockHash, hash_full_blocks, pack, root_hash
from worker.config import RunnerConfig
from worker.report import EngineCounters, ReplicaLoad, ReplicaReport

BLOCK_SIZE = 16
FACTS = ModelFacts(4096, BLOCK_SIZE, 1000, (2,), "digest")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> float:
        self.now += seconds
        return self.now


def make_spec(name: str = "model", **settings: Any) -> DeploymentSpec:
    runner = RunnerConfig("path", max_num_seqs=4, max_num_batched_tokens=256, block_size=BLOCK_SIZE)
    fields = {"served_names": (name, f"{name}-alias"), "runner": runner, **settings}
    return DeploymentSpec(name=name, **fields)


class World:
    """A registry with one deployment, and a leader's side of the reports."""

    def __init__(self, num_replicas: int = 0, **settings: Any) -> None:
        self.clock = Clock()
        self.spec = make_spec(**settings)
        self.registry = ClusterRegistry(self.clock, report_timeout_s=3.0, hang_timeout_s=60.0)
        self.fleet = self.registry.add_deployment(self.spec)
        self._sequences: dict[str, int] = {}
        for index in range(num_replicas):
            self.add_replica(f"r{index}")

    def add_replica(self, replica_id: str, epoch: int = 1) -> None:
        self._sequences.pop(replica_id, None)
        self.registry.begin(self.spec.name, replica_id, epoch, tp_size=1)
        load = self.load()
        self.registry.set_ready(replica_id, epoch, f"{replica_id}:1", FACTS, load)

    def load(self, **values: int) -> ReplicaLoad:
        defaults = {"num_blocks": 1000, "num_free_blocks": 1000, "max_num_seqs": 4}
        return ReplicaLoad(**{**defaults, **values})

    def report(
        self,
        replica_id: str = "r0",
        *,
        epoch: int = 1,
        sequence: int | None = None,
        full: bool | None = None,
        load: ReplicaLoad | None = None,
        stored: Iterable[BlockHash] = (),
        removed: Iterable[BlockHash] = (),
        admitted: Iterable[str] = (),
        draining: bool = False,
        counters: EngineCounters | None = None,
    ) -> ReportOutcome:
        """The next report in order, unless told otherwise; the first is full."""
        if sequence is None:
            sequence = self._sequences.get(replica_id, 0) + 1
        self._sequences[replica_id] = sequence
        return self.registry.apply(
            ReplicaReport(
                replica_id=replica_id,
                epoch=epoch,
                sequence=sequence,
                full=sequence == 1 if full is None else full,
                load=load or self.load(),
                stored_blocks=list(stored),
                removed_blocks=list(removed),
                admitted_request_ids=list(admitted),
                draining=draining,
                counters=counters or EngineCounters(),
            )
        )

    def cached(self, replica_id: str, hashes: Iterable[BlockHash]) -> None:
        self.report(replica_id, stored=hashes, full=True)


def hashes(num_blocks: int, seed: int = 0) -> list[BlockHash]:
    """Of a prompt of so many full blocks; other seeds share no block."""
    tokens = [seed] * (num_blocks * BLOCK_SIZE)
    return hash_full_blocks(tokens, BLOCK_SIZE, root_hash())


def make_request(
    key: object,
    num_tokens: int = 32,
    chain: list[BlockHash] | None = None,
    excluded: Iterable[str] = (),
    **fields: Any,
) -> PlacementRequest:
    return PlacementRequest(
        key=key,
        request_id=f"q{key}",
        num_prompt_tokens=num_tokens,
        packed_hashes=pack(chain or []),
        excluded=frozenset(excluded),
        **fields,
    )


def placed_keys(decisions: Iterable[object]) -> list[object]:
    return [d.key for d in decisions if isinstance(d, Placed)]
