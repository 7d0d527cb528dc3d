"""The control plane's metrics as Prometheus reads them."""

import urllib.request

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from cluster.metrics import ClusterCollector, MetricsServer
from tests.cluster.worlds import World
from worker.report import EngineCounters


def published() -> ClusterCollector:
    world = World(2)
    counters = EngineCounters(
        prefix_cache_queries=100, prefix_cache_hits=60, preemptions=3, step_seconds=1.5
    )
    load = world.load(num_running=2, num_waiting=1, num_free_blocks=750, steps=9, backlog_tokens=5)
    world.report("r0", load=load, counters=counters)
    world.registry.fail("r1", 1, "killed")
    world.clock.advance(1.25)
    collector = ClusterCollector()
    collector.publish(world.registry.snapshot(), {"model": 4})
    return collector


def test_values_are_those_of_the_reports() -> None:
    registry = CollectorRegistry()
    registry.register(published())
    labels = {"model_name": "model", "engine": "r0"}
    expected = {
        "vllm:num_requests_running": 2,
        "vllm:num_requests_waiting": 1,
        "vllm:kv_cache_usage_perc": 0.25,
        "vllm:prefix_cache_queries_total": 100,
        "vllm:prefix_cache_hits_total": 60,
        "vllm:num_preemptions_total": 3,
        "shoal_replica_steps_total": 9,
        "shoal_replica_step_seconds_total": 1.5,
        "shoal_replica_backlog_tokens": 5,
        "shoal_replica_restarts_total": 0,
        "shoal_replica_report_age_seconds": 1.25,
        "shoal_replica_indexed_blocks": 0,
    }
    values = {name: registry.get_sample_value(name, labels) for name in expected}
    assert values == expected
    queue = {"model_name": "model"}
    assert registry.get_sample_value("shoal_placement_queue_depth", queue) == 4
    assert registry.get_sample_value("shoal_deployment_desired_replicas", queue) == 1


def test_exactly_one_state_is_set() -> None:
    registry = CollectorRegistry()
    registry.register(published())
    for engine, state in (("r0", "ready"), ("r1", "dead")):
        labels = {"model_name": "model", "engine": engine}
        values = {
            s: registry.get_sample_value("shoal_replica_state", {**labels, "state": s})
            for s in ("starting", "ready", "draining", "hung", "dead")
        }
        assert values == {s: float(s == state) for s in values}


def test_server_answers_and_gives_its_port_back() -> None:
    server = MetricsServer(published(), port=0)
    url = f"http://127.0.0.1:{server.port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    server.close()
    families = {family.name for family in text_string_to_metric_families(text)}
    assert {"vllm:num_requests_running", "shoal_replica_state"} <= families
    again = MetricsServer(published(), port=server.port)
    again.close()


def test_nothing_published_is_an_empty_cluster() -> None:
    assert [sample for family in ClusterCollector().collect() for sample in family.samples] == []
