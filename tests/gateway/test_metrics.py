"""What a scrape tells of known traffic, under our names and vLLM's."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway import vllm_names
from gateway.errors import OverloadedError, UnavailableError
from gateway.living_engines import KEPT_S
from gateway.metrics import GatewayMetrics
from tests.gateway.fake_router import ids_of

HI = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
LABELS = {"model_name": "tiny", "engine": "r0"}
# vLLM's own test expects these, and its dashboards read them.
VLLM_HISTOGRAMS = {
    "request_prompt_tokens": None,
    "request_generation_tokens": None,
    "request_max_num_generation_tokens": None,
    "request_params_max_tokens": None,
    "request_prefill_kv_computed_tokens": None,
    "request_params_n": (1, 2, 5, 10, 20),
    "request_num_preemptions": (1, 2, 3, 4, 5, 10, 20),
    "time_to_first_token_seconds": vllm_names.TTFT_S,
    "inter_token_latency_seconds": vllm_names.PER_TOKEN_S,
    "request_time_per_output_token_seconds": vllm_names.PER_TOKEN_S,
    "e2e_request_latency_seconds": vllm_names.REQUEST_S,
    "request_queue_time_seconds": vllm_names.REQUEST_S,
    "request_inference_time_seconds": vllm_names.REQUEST_S,
    "request_prefill_time_seconds": vllm_names.REQUEST_S,
    "request_decode_time_seconds": vllm_names.REQUEST_S,
}

HTTP_BUCKET = "http_request_duration_seconds_bucket"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(text: str) -> Samples:
    families = list(text_string_to_metric_families(text))
    names = [family.name for family in families]
    assert len(names) == len(set(names)), "a family may come only once"
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


async def scrape(client: httpx.AsyncClient) -> Samples:
    return parse((await client.get("/metrics")).text)


async def test_known_traffic_is_what_a_scrape_tells(client, router):
    prompt = len((await client.post("/tokenize", json=HI)).json()["tokens"])
    await client.post("/v1/chat/completions", json=HI)
    await client.post("/v1/chat/completions", json={**HI, "stream": True, "max_tokens": 2})
    await client.post("/v1/chat/completions", json={**HI, "n": 0})
    await client.get("/nowhere/secret")
    found = await scrape(client)
    chat = {"method": "POST", "route": "/v1/chat/completions"}
    requests = "shoal_gateway_http_requests_total"
    assert value(found, requests, **chat, status="200") == 2
    assert value(found, requests, **chat, status="400") == 1
    assert value(found, requests, method="GET", route="unmatched", status="404") == 1
    assert value(found, "shoal_gateway_http_request_duration_seconds_count", **chat) == 3
    for prefix in ("shoal_gateway_", "vllm:"):
        assert value(found, f"{prefix}prompt_tokens_total", **LABELS) == 2 * prompt
        assert value(found, f"{prefix}prompt_tokens_cached_total", **LABELS) == 6
        assert value(found, f"{prefix}generation_tokens_total", **LABELS) == 5
        assert value(found, f"{prefix}time_to_first_token_seconds_count", **LABELS) == 2
        assert value(found, f"{prefix}inter_token_latency_seconds_count", **LABELS) == 3
        assert value(found, f"{prefix}e2e_request_latency_seconds_count", **LABELS) == 2
        for reason in ("stop", "length"):
            ends = f"{prefix}request_success_total"
            assert value(found, ends, **LABELS, finished_reason=reason) == 1
    by_source = "vllm:prompt_tokens_by_source_total"
    assert value(found, by_source, **LABELS, source="local_cache_hit") == 6
    assert value(found, by_source, **LABELS, source="local_compute") == 2 * prompt - 6
    sums = {
        "request_prompt_tokens": 2 * prompt,
        "request_generation_tokens": 5,
        "request_max_num_generation_tokens": 5,
        "request_params_max_tokens": 128 - prompt + 2,
        "request_prefill_kv_computed_tokens": 2 * prompt - 6,
        "request_params_n": 2,
        "request_num_preemptions": 0,
        "request_queue_time_seconds": 2 * 0.003,
        "request_prefill_time_seconds": 2 * 0.003,
        "request_decode_time_seconds": 2 * 0.004,
        "request_inference_time_seconds": 2 * 0.007,
        "request_time_per_output_token_seconds": 0.004 / 2 + 0.004,
    }
    for name, total in sums.items():
        assert value(found, f"vllm:{name}_sum", **LABELS) == pytest.approx(total), name
        assert value(found, f"vllm:{name}_count", **LABELS) == 2
    assert value(found, "shoal_gateway_in_flight_requests") == 1  # the scrape itself
    chat = {"method": "POST", "handler": "/v1/chat/completions"}
    assert value(found, "http_requests_total", **chat, status="2xx") == 2
    assert value(found, "http_requests_total", **chat, status="4xx") == 1
    bounds = [dict(labels)["le"] for name, labels in found if name == HTTP_BUCKET]
    assert set(bounds) == {"0.1", "0.5", "1.0", "+Inf"}


async def test_each_choice_counts_as_a_request_of_the_engine_as_in_vllm(client):
    prompt = len((await client.post("/tokenize", json=HI)).json()["tokens"])
    answer = await client.post("/v1/chat/completions", json={**HI, "n": 3})
    assert answer.json()["usage"]["prompt_tokens"] == prompt
    found = await scrape(client)
    assert value(found, "vllm:prompt_tokens_total", **LABELS) == 3 * prompt
    assert value(found, "vllm:e2e_request_latency_seconds_count", **LABELS) == 3
    assert value(found, "vllm:request_params_n_sum", **LABELS) == 3
    assert value(found, "vllm:request_params_n_count", **LABELS) == 1
    usage = {"key": "", "model_name": "tiny", "kind": "prompt"}
    assert value(found, "shoal_usage_tokens_total", **usage) == prompt


async def test_names_and_buckets_are_exactly_vllms(client):
    await client.post("/v1/chat/completions", json=HI)
    found = await scrape(client)
    for name, bounds in VLLM_HISTOGRAMS.items():
        if bounds is None:  # 1-2-5 up to the model's window of 128
            bounds = (1, 2, 5, 10, 20, 50, 100)
        buckets = {
            float(dict(labels)["le"]): count
            for (sample, labels), count in found.items()
            if sample == f"vllm:{name}_bucket"
        }
        assert list(buckets) == [*map(float, bounds), float("inf")], name
        assert list(buckets.values()) == sorted(buckets.values())
        assert buckets[float("inf")] == value(found, f"vllm:{name}_count", **LABELS)


async def test_our_buckets_go_down_to_what_small_models_take(client):
    await client.post("/v1/chat/completions", json=HI)
    bounds = {
        float(dict(labels)["le"])
        for name, labels in await scrape(client)
        if name == "shoal_gateway_inter_token_latency_seconds_bucket"
    }
    assert {0.0005, 0.001, 0.0025, 0.005} <= bounds


async def test_failures_are_told_from_ends(client, router):
    router.script = lambda request: [UnavailableError("gone")]
    await client.post("/v1/chat/completions", json=HI)
    found = await scrape(client)
    ends = {"model_name": "tiny", "engine": "", "finished_reason": "error"}
    assert value(found, "shoal_gateway_request_success_total", **ends) == 1
    none = {"model_name": "tiny", "engine": ""}
    assert value(found, "vllm:e2e_request_latency_seconds_count", **none) == 0
    assert value(found, "vllm:prompt_tokens_total", **none) == 0


async def test_a_full_cluster_counts_as_a_rejection(client, router):
    router.refusal = OverloadedError("full", retry_after_s=2.0)
    assert (await client.post("/v1/chat/completions", json=HI)).status_code == 503
    reason = {"model_name": "tiny", "reason": "max_num_queued_reqs"}
    assert value(await scrape(client), "vllm:admission_rejections_total", **reason) == 1


async def test_a_scrape_shows_the_engines_behind_the_gateway(client, view):
    view.exposition = (
        b'# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{a="b"} 0.5\n'
    )
    assert value(await scrape(client), "vllm:kv_cache_usage_perc", a="b") == 0.5


async def test_token_intervals_add_up_however_they_are_passed_on(client, router):
    """More tokens than are passed on at once, in groups of several."""
    metrics = GatewayMetrics()
    timer = metrics.of_model("tiny").start(0.0)
    timer.on_tokens(0, 1)
    for _ in range(300):
        timer.on_tokens(0, 2)
    found = parse(metrics.exposition().decode())
    none = {"model_name": "tiny", "engine": ""}
    assert value(found, "vllm:inter_token_latency_seconds_count", **none) == 600
    assert (
        value(found, "shoal_gateway_inter_token_latency_seconds_bucket", **none, le="+Inf") == 600
    )


def shown_engines(metrics: GatewayMetrics) -> set[str]:
    found = parse(metrics.exposition().decode())
    return {labels["engine"] for _, pairs in found if "engine" in (labels := dict(pairs))}


def test_replicas_that_left_the_cluster_are_forgotten_once_they_were_read():
    now = 0.0
    metrics = GatewayMetrics(clock=lambda: now)
    model = metrics.of_model("tiny")
    for engine in ("", "r0", "r1"):
        model.of_engine(engine).generation_tokens.inc()
    metrics.follow({"r0", "r1"})
    metrics.follow({"r1"})
    assert shown_engines(metrics) == {"", "r0", "r1"}
    now = KEPT_S + 1
    metrics.follow({"r1"})
    assert shown_engines(metrics) == {"", "r1"}
    assert not any("r0" in labels for labels in metrics._generation_tokens._metrics)
    model.of_engine("r0").generation_tokens.inc()  # it comes again
    metrics.follow({"r1"})
    labels = {"model_name": "tiny", "engine": "r0"}
    found = parse(metrics.exposition().decode())
    assert value(found, "vllm:generation_tokens_total", **labels) == 1


def test_a_thousand_replicas_leave_no_series_behind():
    now = 0.0
    metrics = GatewayMetrics(clock=lambda: now)
    for number in range(1000):
        name = f"r{number}"
        metrics.of_model("tiny").of_engine(name)
        metrics.follow({name})
        now += KEPT_S / 10
    assert len(shown_engines(metrics)) <= 12


def test_processes_that_share_a_folder_show_only_replicas_that_are_there(tmp_path):
    follow = "metrics.follow({'r1'})\nmetrics.of_model('tiny').of_engine('r1')\n"
    shown = PROCESS.replace("print(", follow + "print(")
    for script in (PROCESS, shown.replace("'r0'", "'r1'")):
        done = _in_a_process(script, tmp_path)
    found = parse(done.stdout)
    name = "vllm:prompt_tokens_total"
    assert [dict(labels)["engine"] for sample, labels in found if sample == name] == ["r1"]


PROCESS = f"""
from gateway.metrics import GatewayMetrics
from gateway.tokens import Timing
metrics = GatewayMetrics()
timer = metrics.of_model('tiny').start(0.0)
timer.on_prompt(5, Timing(2, engine='r0'))
timer.on_tokens(0, {len(ids_of("hello"))})
timer.on_tokens(0, 1)
print(metrics.exposition().decode())
"""


def _in_a_process(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        env={"PROMETHEUS_MULTIPROC_DIR": str(folder), "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


def test_several_processes_show_their_sum(tmp_path):
    for _ in range(2):
        done = _in_a_process(PROCESS, tmp_path)
    found = parse(done.stdout)
    for prefix in ("shoal_gateway_", "vllm:"):
        assert value(found, f"{prefix}prompt_tokens_total", **LABELS) == 10
        assert value(found, f"{prefix}prompt_tokens_cached_total", **LABELS) == 4
        assert value(found, f"{prefix}time_to_first_token_seconds_count", **LABELS) == 2


def test_applications_do_not_share_their_metrics():
    first, second = GatewayMetrics(), GatewayMetrics()
    first.count_rejection("tiny")
    assert b'model_name="tiny"' not in second.exposition()
