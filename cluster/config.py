"""What is to run: the deployment's specification, as the CLI resolved it. Plain data, JSON on the
way to Ray.
"""

import json
from dataclasses import asdict, dataclass
from typing import Literal

from worker.config import RunnerConfig, SpeculationConfig

PolicyName = Literal["prefix_aware", "least_loaded"]

RAY_NAMESPACE = "shoal"
SCHEDULER_ACTOR_NAME = "cluster-scheduler"


@dataclass(frozen=True, slots=True)
class DeploymentSpec:
    """The replicas of one model."""

    name: str  # the first served name
    served_names: tuple[str, ...]
    runner: RunnerConfig
    tp_size: int = 1
    num_replicas: int = 1
    cpus_per_rank: float = 1.0
    gpus_per_rank: float = 0.0
    enable_prefix_caching: bool = True
    max_logprobs: int = 20
    target_itl_ms: float | None = None  # see EngineConfig
    speculation: SpeculationConfig | None = None
    policy: PolicyName = "prefix_aware"
    max_queued: int = 4096  # requests in the placement queue; beyond it they are refused
    created_unix_s: int = 0

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "DeploymentSpec":
        fields = json.loads(text)
        fields["runner"] = RunnerConfig(**fields["runner"])
        if fields.get("speculation") is not None:
            fields["speculation"] = SpeculationConfig(**fields["speculation"])
        fields["served_names"] = tuple(fields["served_names"])
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Passed to the ClusterScheduler actor's constructor: a restart runs it again with the same
    values, so the gRPC port is fixed before the first start and gateways find the new incarnation
    where the old one was."""

    host: str  # address others reach it under
    port: int
    metrics_port: int = 0  # Prometheus; 0: none
    report_timeout_s: float = 3.0  # a leader silent for longer is suspect
    hang_timeout_s: float = 60.0  # work pending and no step for longer: hung
    lost_timeout_s: float = 15.0  # a leader without a report or a ping for longer is replaced
    placement_timeout_s: float = 30.0  # for a replica's resources
    start_timeout_s: float = 1800.0  # for loading a replica
