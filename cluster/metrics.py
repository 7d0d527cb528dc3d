"""The control plane's numbers for Prometheus, read from the latest snapshot of the registry.

The names with `vllm:` are those dashboards for vLLM expect, with `engine` as the replica; what vLLM
measures at its HTTP edge has its truth in our gateways and is shown there, in front of these. The
HTTP server runs in threads of its own, hence the swap of a frozen snapshot.
"""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Metric, generate_latest, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from cluster.state import ClusterState, DeploymentInfo, ReplicaInfo, ReplicaState
from worker.report import STEP_TOKEN_BOUNDS

ENGINE = ("model_name", "engine")
PLACEMENT_QUEUE = "placement-queue"  # stands as the engine of requests that have none yet


@dataclass(frozen=True, slots=True)
class Published:
    state: ClusterState
    num_queued: "Queued"  # by deployment


class ClusterCollector(Collector):
    """Any thread may collect; the scheduler's loop publishes."""

    def __init__(self) -> None:
        self._published = Published(ClusterState(0, ()), {})

    def publish(self, state: ClusterState, num_queued: Mapping[str, int]) -> None:
        self._published = Published(state, num_queued)

    def exposition(self) -> bytes:
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        published = self._published
        engines = [
            ((info.spec.name, replica.replica_id), replica)
            for info in published.state.deployments
            for replica in info.replicas
        ]
        yield from _load(engines)
        yield from _waiting_by_reason(engines, published.num_queued)
        yield from _counters(engines)
        yield _iteration_tokens(engines)
        yield _cache_config(published.state.deployments)
        yield from _lifecycle(engines)
        yield from _deployments(published.state.deployments, published.num_queued)


Engines = list[tuple[tuple[str, str], ReplicaInfo]]
Queued = Mapping[str, int]


def _load(engines: Engines) -> Iterator[Metric]:
    running = GaugeMetricFamily("vllm:num_requests_running", "Requests in the batch", labels=ENGINE)
    usage = GaugeMetricFamily(
        "vllm:kv_cache_usage_perc", "Used share of the KV-cache blocks, 0 to 1", labels=ENGINE
    )
    backlog = GaugeMetricFamily(
        "shoal_replica_backlog_tokens", "Prompt tokens not yet computed", labels=ENGINE
    )
    for labels, replica in engines:
        load = replica.load
        running.add_metric(labels, load.num_running)
        used = load.num_blocks - load.num_free_blocks
        usage.add_metric(labels, used / load.num_blocks if load.num_blocks else 0.0)
        backlog.add_metric(labels, load.backlog_tokens)
    yield from (running, usage, backlog)


def _waiting_by_reason(engines: Engines, queued: Queued) -> Iterator[Metric]:
    """Whoever scales by waiting requests must see those that wait for a replica too: they are most
    of them, as a request is bound to one only when that can start it."""
    waiting = GaugeMetricFamily(
        "vllm:num_requests_waiting", "Requests that have not begun", labels=ENGINE
    )
    by_reason = GaugeMetricFamily(
        "vllm:num_requests_waiting_by_reason", "Why they wait", labels=(*ENGINE, "reason")
    )
    counts = [(labels, replica.load.num_waiting) for labels, replica in engines]
    counts += [((model, PLACEMENT_QUEUE), number) for model, number in queued.items()]
    for labels, number in counts:
        waiting.add_metric(labels, number)
        by_reason.add_metric((*labels, "capacity"), number)
        by_reason.add_metric((*labels, "deferred"), 0)
    yield from (waiting, by_reason)


_COUNTERS = {
    "vllm:prefix_cache_queries": ("Tokens looked up in the prefix cache", "prefix_cache_queries"),
    "vllm:prefix_cache_hits": ("Tokens found in the prefix cache", "prefix_cache_hits"),
    "vllm:num_preemptions": ("Requests that lost their blocks to others", "preemptions"),
    "vllm:spec_decode_num_drafts": ("Sequences in steps that carried guesses", "drafts"),
    "vllm:spec_decode_num_draft_tokens": ("Guessed tokens", "draft_tokens"),
    "vllm:spec_decode_num_accepted_tokens": ("Guessed tokens that were right", "accepted_tokens"),
    "shoal_replica_prompt_tokens": ("Prompt tokens of admitted requests", "prompt_tokens"),
    "shoal_replica_generation_tokens": ("Tokens sampled", "generation_tokens"),
    "shoal_replica_step_seconds": ("Time spent inside engine steps", "step_seconds"),
}


def _counters(engines: Engines) -> Iterator[Metric]:
    for name, (text, attribute) in _COUNTERS.items():
        family = CounterMetricFamily(name, text, labels=ENGINE)
        for labels, replica in engines:
            family.add_metric(labels, getattr(replica.counters, attribute))
        yield family
    steps = CounterMetricFamily("shoal_replica_steps", "Engine steps", labels=ENGINE)
    for labels, replica in engines:
        steps.add_metric(labels, replica.load.steps)
    yield steps
    yield _accepted_by_position(engines)


def _accepted_by_position(engines: Engines) -> Metric:
    family = CounterMetricFamily(
        "vllm:spec_decode_num_accepted_tokens_per_pos",
        "Guessed tokens that were right, by their place in a step",
        labels=(*ENGINE, "position"),
    )
    for labels, replica in engines:
        for position, number in enumerate(replica.counters.accepted_by_position):
            family.add_metric((*labels, str(position)), number)
    return family


def _iteration_tokens(engines: Engines) -> Metric:
    family = HistogramMetricFamily(
        "vllm:iteration_tokens_total", "Tokens computed in a step", labels=ENGINE
    )
    bounds = [*map(float, STEP_TOKEN_BOUNDS), float("inf")]
    for labels, replica in engines:
        counters = replica.counters
        counts = counters.steps_by_tokens or (0,) * len(bounds)
        buckets = [
            (floatToGoString(le), n) for le, n in zip(bounds, accumulate(counts), strict=True)
        ]
        family.add_metric(labels, buckets, counters.step_tokens)
    return family


def _cache_config(deployments: tuple[DeploymentInfo, ...]) -> Metric:
    """Labels are the settings of the cache, the value is always 1."""
    names = ("block_size", "num_gpu_blocks", "enable_prefix_caching", "gpu_memory_utilization")
    family = GaugeMetricFamily(
        "vllm:cache_config_info", "Settings of the KV cache", labels=(*ENGINE, *names)
    )
    for info in deployments:
        runner = info.spec.runner
        for replica in info.replicas:
            values = (
                info.facts.block_size if info.facts else runner.block_size,
                replica.load.num_blocks,
                info.spec.enable_prefix_caching,
                runner.memory_utilization,
            )
            family.add_metric((info.spec.name, replica.replica_id, *map(str, values)), 1)
    return family


def _lifecycle(engines: Engines) -> Iterator[Metric]:
    states = GaugeMetricFamily(
        "shoal_replica_state", "1 for the state the replica is in", labels=(*ENGINE, "state")
    )
    age = GaugeMetricFamily(
        "shoal_replica_report_age_seconds", "Since the leader's last report", labels=ENGINE
    )
    restarts = CounterMetricFamily(
        "shoal_replica_restarts", "Incarnations after the first", labels=ENGINE
    )
    indexed = GaugeMetricFamily(
        "shoal_replica_indexed_blocks", "Its blocks in the prefix index", labels=ENGINE
    )
    for labels, replica in engines:
        for state in ReplicaState:
            states.add_metric((*labels, state.value), float(replica.state is state))
        age.add_metric(labels, replica.report_age_s)
        restarts.add_metric(labels, replica.num_restarts)
        indexed.add_metric(labels, replica.num_indexed_blocks)
    yield from (states, age, restarts, indexed)


def _deployments(
    deployments: tuple[DeploymentInfo, ...], num_queued: Mapping[str, int]
) -> Iterator[Metric]:
    depth = GaugeMetricFamily(
        "shoal_placement_queue_depth", "Requests waiting for a replica", labels=("model_name",)
    )
    desired = GaugeMetricFamily(
        "shoal_deployment_desired_replicas", "Replicas asked for", labels=("model_name",)
    )
    for info in deployments:
        depth.add_metric((info.spec.name,), num_queued.get(info.spec.name, 0))
        desired.add_metric((info.spec.name,), info.spec.num_replicas)
    yield from (depth, desired)


class MetricsServer:
    """Serves one collector over HTTP until closed. Raises: OSError when the port is taken."""

    def __init__(self, collector: ClusterCollector, port: int) -> None:
        registry = CollectorRegistry()
        registry.register(collector)
        self._server: WSGIServer
        self._thread: threading.Thread
        self._server, self._thread = start_http_server(port, registry=registry)

    @property
    def port(self) -> int:
        return int(self._server.server_port)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5.0)
