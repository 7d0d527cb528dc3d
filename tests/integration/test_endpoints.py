"""Everything besides generation that a client, a probe or an operator asks a real cluster."""

import json
import urllib.error
import urllib.request

import pytest

from tests.live import LiveCluster

pytestmark = pytest.mark.ray


def test_models_are_listed_under_both_names(cluster: LiveCluster) -> None:
    ids = [card["id"] for card in cluster.get("/v1/models")["data"]]
    assert ids == ["shoal-demo", "mosaicml/mpt-7b"]
    assert cluster.get("/v1/models/shoal-demo")["max_model_len"] > 0


def test_probes_are_green(cluster: LiveCluster) -> None:
    for path in ("/livez", "/readyz", "/health"):
        cluster.get(path)


def test_tokenize_round_trips(cluster: LiveCluster) -> None:
    def post(path: str, body: dict[str, object]) -> dict[str, object]:
        request = urllib.request.Request(
            cluster.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            result: dict[str, object] = json.loads(answer.read())
        return result

    text = "Io amo programmare, naïve 😀"
    tokens = post("/tokenize", {"model": "shoal-demo", "prompt": text})
    back = post("/detokenize", {"model": "shoal-demo", "tokens": tokens["tokens"]})
    assert back["prompt"] == text


def test_status_shows_one_replica_of_two_shards(cluster: LiveCluster) -> None:
    text = json.dumps(cluster.status())
    assert "shoal-demo" in text and "ready" in text.lower()


def test_metrics_count_requests(cluster: LiveCluster) -> None:
    with urllib.request.urlopen(cluster.url + "/metrics", timeout=10) as answer:
        text = answer.read().decode()
    assert "vllm:time_to_first_token_seconds" in text
    assert 'vllm:kv_cache_usage_perc{engine="shoal-demo-0",model_name="shoal-demo"}' in text


def test_unknown_route_is_an_openai_error(cluster: LiveCluster) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        cluster.get("/v1/nothing")
    assert caught.value.code == 404
    error = json.loads(caught.value.read())["error"]
    assert set(error) == {"message", "type", "param", "code"}
