"""Mutated requests through real sockets to a real cluster: answers or 4xx, and nothing grows or
restarts. What is mutated and how is in tests/gateway/test_mutations.py.
"""

import http.client
import json
from random import Random

import psutil
import pytest

from tests.gateway.test_mutations import mutated
from tests.live import LiveCluster

pytestmark = pytest.mark.ray

MAX_GROWTH_BYTES = 30_000_000


def send(cluster: LiveCluster, numbers: range) -> set[int]:
    """All on one connection, as a pool's would be: an answer must leave it usable."""
    connection = http.client.HTTPConnection("127.0.0.1", cluster.port, timeout=60)
    headers = {"content-type": "application/json"}
    statuses = set()
    for number in numbers:
        path, data = mutated(Random(number))
        connection.request("POST", path, data.replace(b'"tiny"', b'"shoal-demo"'), headers)
        response = connection.getresponse()
        body = response.read()
        statuses.add(response.status)
        assert response.status in (200, 400, 404), (number, data, body)
        if response.status != 200:
            error = json.loads(body)["error"]
            assert set(error) == {"message", "type", "param", "code"}, number
        # A stream that broke off says so inside.
        assert b'"server_error"' not in body, (number, data, body)
    connection.close()
    return statuses


def replica(cluster: LiveCluster) -> tuple[object, ...]:
    (one,) = cluster.status()["deployments"][0]["replicas"]
    return one["restarts"], one["epoch"], one["pids"]


def gateway_bytes(cluster: LiveCluster) -> dict[int, int]:
    """Resident, by process."""
    family = psutil.Process(cluster.process.pid).children(recursive=True)
    gateways = [one for one in family if "gateway" in " ".join(one.cmdline())]
    return {one.pid: one.memory_info().rss for one in gateways}


def test_mutated_bodies_reach_a_real_cluster_and_it_goes_on(cluster: LiveCluster) -> None:
    before = replica(cluster)
    assert {200, 400} <= send(cluster, range(400))
    assert replica(cluster) == before


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thousands_of_mutated_bodies_leave_no_trace_in_the_gateways(cluster: LiveCluster) -> None:
    unharmed = replica(cluster)
    send(cluster, range(2_000))
    before = gateway_bytes(cluster)
    assert before
    send(cluster, range(2_000, 12_000))
    after = gateway_bytes(cluster)
    assert after.keys() == before.keys()  # none was started anew
    assert all(after[pid] - before[pid] < MAX_GROWTH_BYTES for pid in before), (before, after)
    assert replica(cluster) == unharmed
