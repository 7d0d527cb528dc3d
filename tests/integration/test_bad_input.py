"""Bad input against a real cluster: the right refusal each time, and the cluster unharmed."""

import json
import urllib.error
import urllib.request
from typing import Any

import pytest

from tests.bad_input import BadInput, bad_inputs
from tests.live import LiveCluster

pytestmark = pytest.mark.ray

MODEL = "shoal-demo"


def send(cluster: LiveCluster, row: BadInput) -> tuple[int, Any]:
    body = row.body
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    request = urllib.request.Request(
        cluster.url + row.path, data=body, headers=row.headers, method=row.method
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def complaint(status: int, answer: Any, row: BadInput) -> str:
    """Empty if the answer is what the row asks for."""
    if status != row.status:
        return f"{row.name}: status {status} instead of {row.status}: {answer}"
    error = answer.get("error", {})
    if set(error) != {"message", "type", "param", "code"}:
        return f"{row.name}: not the OpenAI error object: {answer}"
    if (error["param"], error["code"]) != (row.param, row.code):
        return f"{row.name}: param and code {error['param']}, {error['code']}: {error['message']}"
    return ""


def test_every_bad_input_is_refused_and_the_cluster_goes_on(cluster: LiveCluster) -> None:
    card = cluster.get(f"/v1/models/{MODEL}")
    (deployment,) = cluster.status()["deployments"]
    before = deployment["replicas"][0]
    rows = bad_inputs(MODEL, card["max_model_len"], vocab_size(cluster))
    assert len(rows) >= 40
    complaints = [complaint(*send(cluster, row), row) for row in rows]
    assert [c for c in complaints if c] == []
    status, answer = send(cluster, good_request())
    assert status == 200 and answer["usage"]["completion_tokens"] > 0
    after = cluster.status()["deployments"][0]["replicas"][0]
    assert (after["restarts"], after["epoch"], after["pids"]) == (
        before["restarts"],
        before["epoch"],
        before["pids"],
    )


def good_request() -> BadInput:
    body = {"model": MODEL, "prompt": "I love", "max_tokens": 4}
    return BadInput("good", "POST", "/v1/completions", body, 200)


def vocab_size(cluster: LiveCluster) -> int:
    """The first id that the model refuses: found by halving, as a client would have to."""
    low, high = 1, 1 << 20
    while low < high:
        middle = (low + high) // 2
        body = {"model": MODEL, "prompt": [middle], "max_tokens": 1}
        status, _ = send(cluster, BadInput("probe", "POST", "/v1/completions", body, 200))
        low, high = (middle + 1, high) if status == 200 else (low, middle)
    return low
