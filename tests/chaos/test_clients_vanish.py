"""200 clients that hang up in the middle of their streams: nothing they held stays behind."""

import asyncio
import json
import time

import grpc
import pytest

from protos import worker_pb2, worker_pb2_grpc
from tests.live import LiveCluster

pytestmark = [pytest.mark.chaos, pytest.mark.ray]

NUM_CLIENTS = 200
FREED_WITHIN_S = 1.0


def body(max_tokens: int, prompt: list[int]) -> bytes:
    payload = json.dumps(
        {
            "model": "shoal-demo",
            "prompt": prompt,
            "max_tokens": max_tokens,
            "stream": True,
            "ignore_eos": True,
            "temperature": 0,
        }
    ).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(payload)}\r\n\r\n"
    )
    return head.encode() + payload


async def open_stream(cluster: LiveCluster, index: int) -> asyncio.StreamWriter:
    """Returns once the first token has arrived: the request then holds blocks."""
    reader, writer = await asyncio.open_connection("127.0.0.1", cluster.port)
    writer.write(body(1500, [10 + index % 300, 20, 30, 40]))
    await asyncio.wait_for(reader.readuntil(b"data:"), 60)
    return writer


async def fresh_request_s(cluster: LiveCluster) -> float:
    started = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", cluster.port)
    writer.write(body(4, [7, 8, 9]))
    await asyncio.wait_for(reader.readuntil(b"data: [DONE]"), 30)
    writer.close()
    return time.monotonic() - started


async def replica_load(address: str) -> tuple[int, int]:
    """(requests, blocks in use) of the replica, as the leader itself tells them."""
    async with grpc.aio.insecure_channel(address) as channel:
        info = await worker_pb2_grpc.WorkerStub(channel).GetInfo(
            worker_pb2.GetInfoRequest(), timeout=5
        )
    return info.num_running + info.num_waiting, info.num_blocks - info.num_free_blocks


def leader_address(cluster: LiveCluster) -> str:
    (deployment,) = cluster.status()["deployments"]
    (replica,) = deployment["replicas"]
    return str(replica["address"])


async def test_blocks_are_back_within_a_second(cluster: LiveCluster) -> None:
    leader = await asyncio.to_thread(leader_address, cluster)
    calm_s = min([await fresh_request_s(cluster) for _ in range(5)])
    baseline = await replica_load(leader)
    writers = await asyncio.gather(*(open_stream(cluster, i) for i in range(NUM_CLIENTS)))
    assert (await replica_load(leader))[0] > NUM_CLIENTS * 0.9
    for writer in writers:
        writer.transport.abort()
    gone_at = time.monotonic()
    while (load := await replica_load(leader)) != baseline:
        assert time.monotonic() - gone_at < 10, f"{load} instead of {baseline}"
        await asyncio.sleep(0.02)
    freed_s = time.monotonic() - gone_at
    after_s = min([await fresh_request_s(cluster) for _ in range(3)])
    print(
        f"freed after {freed_s:.2f} s; a request took {calm_s:.3f} s before, {after_s:.3f} s after"
    )
    assert freed_s <= FREED_WITHIN_S
    assert after_s <= 3 * calm_s + 0.2
