"""A real cluster's bill: usage log, the gateway's metrics and the engine's own counts agree."""

import json
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.conftest import USAGE_LOG
from tests.live import LiveCluster

pytestmark = pytest.mark.ray

ENGINE = {"model_name": "shoal-demo", "engine": "shoal-demo-0"}
WAIT_S = 10.0  # records and reports come several times a second, the control plane's word once


def counts(cluster: LiveCluster) -> dict[str, float]:
    with urllib.request.urlopen(cluster.url + "/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    samples = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }

    def of(name: str, **labels: str) -> float:
        return samples.get((name, frozenset(labels.items())), 0.0)

    usage = {"key": "", "model_name": "shoal-demo"}
    return {
        "prompt": of("vllm:prompt_tokens_total", **ENGINE),
        "completion": of("vllm:generation_tokens_total", **ENGINE),
        "billed prompt": of("shoal_usage_tokens_total", **usage, kind="prompt"),
        "billed completion": of("shoal_usage_tokens_total", **usage, kind="completion"),
        "engine's prompt": of("shoal_replica_prompt_tokens_total", **ENGINE),
        "engine's completion": of("shoal_replica_generation_tokens_total", **ENGINE),
    }


def ask(cluster: LiveCluster, **fields: Any) -> None:
    body = {"model": "shoal-demo", "prompt": "I love programming.", **fields}
    request = urllib.request.Request(
        cluster.api + "/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()


def usage(cluster: LiveCluster) -> list[dict[str, Any]]:
    path = cluster.log.parent / USAGE_LOG
    return [json.loads(line) for line in path.read_text().splitlines()]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.1)


def settled(cluster: LiveCluster, before: dict[str, float], prompt: float) -> dict[str, float]:
    """What was added, once the engine's report of `prompt` tokens has come through."""

    def added() -> dict[str, float]:
        return {name: value - before[name] for name, value in counts(cluster).items()}

    until(lambda: added()["engine's prompt"] >= prompt)
    return added()


def test_log_metrics_and_engine_count_the_same(cluster: LiveCluster) -> None:
    time.sleep(2.0)  # what the tests before have left running has been aborted and reported
    before, num_lines = counts(cluster), len(usage(cluster))
    ask(cluster, max_tokens=7)
    ask(cluster, max_tokens=5, stream=True)
    ask(cluster, max_tokens=1, prompt=["one", "two two"])
    until(lambda: len(usage(cluster)) == num_lines + 3)
    lines = usage(cluster)[num_lines:]
    prompt = sum(line["prompt_tokens"] for line in lines)
    completion = sum(line["completion_tokens"] for line in lines)
    assert prompt > 0 and 0 < completion <= 14
    assert settled(cluster, before, prompt) == {
        "prompt": prompt,
        "completion": completion,
        "billed prompt": prompt,
        "billed completion": completion,
        "engine's prompt": prompt,
        "engine's completion": completion,
    }
