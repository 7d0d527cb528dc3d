"""The control plane's numbers for Prometheus, read from the latest snapshot of the registry.

The names with `vllm:` are those dashboards for vLLM expect, with `engine` as the replica. The HTTP
server runs in threads of its own, hence the swap of a frozen snapshot.
"""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from cluster.state import ClusterState, DeploymentInfo, ReplicaInfo, ReplicaState

ENGINE = ("model_name", "engine")


@dataclass(frozen=True, slots=True)
class Published:
    state: ClusterState
    num_queued: Mapping[str, int]  # by deployment


class ClusterCollector(Collector):
    """Any thread may collect; the scheduler's loop publishes."""

    def __init__(self) -> None:
        self._published = Published(ClusterState(0, ()), {})

    def publish(self, state: ClusterState, num_queued: Mapping[str, int]) -> None:
        self._published = Published(state, num_queued)

    def collect(self) -> Iterator[Metric]:
        published = self._published
        engines = [
            ((info.spec.name, replica.replica_id), replica)
            for info in published.state.deployments
            for replica in info.replicas
        ]
        yield from _load(engines)
        yield from _counters(engines)
        yield from _lifecycle(engines)
        yield from _deployments(published.state.deployments, published.num_queued)


Engines = list[tuple[tuple[str, str], ReplicaInfo]]


def _load(engines: Engines) -> Iterator[Metric]:
    running = GaugeMetricFamily("vllm:num_requests_running", "Requests in the batch", labels=ENGINE)
    waiting = GaugeMetricFamily(
        "vllm:num_requests_waiting", "Requests in the engine's queue", labels=ENGINE
    )
    usage = GaugeMetricFamily(
        "vllm:kv_cache_usage_perc", "Used share of the KV-cache blocks, 0 to 1", labels=ENGINE
    )
    backlog = GaugeMetricFamily(
        "shoal_replica_backlog_tokens", "Prompt tokens not yet computed", labels=ENGINE
    )
    for labels, replica in engines:
        load = replica.load
        running.add_metric(labels, load.num_running)
        waiting.add_metric(labels, load.num_waiting)
        used = load.num_blocks - load.num_free_blocks
        usage.add_metric(labels, used / load.num_blocks if load.num_blocks else 0.0)
        backlog.add_metric(labels, load.backlog_tokens)
    yield from (running, waiting, usage, backlog)


def _counters(engines: Engines) -> Iterator[Metric]:
    queries = CounterMetricFamily(
        "vllm:prefix_cache_queries", "Tokens looked up in the prefix cache", labels=ENGINE
    )
    hits = CounterMetricFamily(
        "vllm:prefix_cache_hits", "Tokens found in the prefix cache", labels=ENGINE
    )
    preemptions = CounterMetricFamily(
        "vllm:num_preemptions", "Requests that lost their blocks to others", labels=ENGINE
    )
    steps = CounterMetricFamily("shoal_replica_steps", "Engine steps", labels=ENGINE)
    seconds = CounterMetricFamily(
        "shoal_replica_step_seconds", "Time spent inside engine steps", labels=ENGINE
    )
    for labels, replica in engines:
        queries.add_metric(labels, replica.counters.prefix_cache_queries)
        hits.add_metric(labels, replica.counters.prefix_cache_hits)
        preemptions.add_metric(labels, replica.counters.preemptions)
        steps.add_metric(labels, replica.load.steps)
        seconds.add_metric(labels, replica.counters.step_seconds)
    yield from (queries, hits, preemptions, steps, seconds)


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
