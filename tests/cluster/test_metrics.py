"""The control plane's metrics as Prometheus reads them."""

import urllib.request

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cluster.metrics import ClusterCollector, MetricsServer
from tests.cluster.worlds import World
from worker.report import EngineCounters


def published() -> ClusterCollector:
    world = World(2)
    counters = EngineCounters(
        prefix_cache_queries=100,
        prefix_cache_hits=60,
        preemptions=3,
        step_seconds=1.5,
        drafts=4,
        draft_tokens=12,
        accepted_tokens=7,
        accepted_by_position=(4, 2, 1),
        step_tokens=4100,
        steps_by_tokens=(5, 3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0),
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
        "vllm:spec_decode_num_drafts_total": 4,
        "vllm:spec_decode_num_draft_tokens_total": 12,
        "vllm:spec_decode_num_accepted_tokens_total": 7,
        "vllm:iteration_tokens_total_count": 9,
        "vllm:iteration_tokens_total_sum": 4100,
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


def test_right_guesses_are_told_by_their_place() -> None:
    name = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
    found = [value(name, engine="r0", position=str(place)) for place in range(4)]
    assert found == [4, 2, 1, None]


def value(name: str, **labels: str) -> float | None:
    registry = CollectorRegistry()
    registry.register(published())
    return registry.get_sample_value(name, {"model_name": "model", **labels})


def test_waiting_counts_those_without_a_replica_too() -> None:
    waiting = "vllm:num_requests_waiting"
    assert value(waiting, engine="r0") == 1
    assert value(waiting, engine="placement-queue") == 4
    by_reason = "vllm:num_requests_waiting_by_reason"
    assert value(by_reason, engine="placement-queue", reason="capacity") == 4
    assert value(by_reason, engine="r0", reason="deferred") == 0


def test_steps_are_a_histogram_of_their_tokens() -> None:
    bucket = "vllm:iteration_tokens_total_bucket"
    found = {le: value(bucket, engine="r0", le=le) for le in ("1.0", "8.0", "1024.0", "2048.0")}
    assert found == {"1.0": 5, "8.0": 8, "1024.0": 8, "2048.0": 9}
    assert value(bucket, engine="r0", le="+Inf") == 9
    assert value(bucket, engine="r1", le="+Inf") == 0  # it has reported nothing


def test_settings_of_the_cache_are_labels() -> None:
    registry = CollectorRegistry()
    registry.register(published())
    text = generate_latest(registry).decode()
    (line,) = [
        one
        for one in text.splitlines()
        if one.startswith("vllm:cache_config_info{") and 'engine="r0"' in one
    ]
    assert 'block_size="16"' in line and 'num_gpu_blocks="1000"' in line
    assert line.endswith(" 1.0")


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


def test_the_text_for_gateways_is_the_endpoints() -> None:
    families = {
        one.name for one in text_string_to_metric_families(published().exposition().decode())
    }
    assert {"vllm:kv_cache_usage_perc", "shoal_placement_queue_depth"} <= families
