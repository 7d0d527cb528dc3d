"""kill -9 of the ClusterScheduler: live streams never need it, and it comes back with its full
state.
"""

import asyncio
import os
import signal
import time
from contextlib import suppress

import grpc
import openai
import psutil
import pytest

from protos import scheduler_pb2, scheduler_pb2_grpc
from tests.live import LiveCluster

pytestmark = [pytest.mark.chaos, pytest.mark.ray]

NUM_STREAMS = 32
NUM_TOKENS = 1500  # they must outlast the scheduler's return
BACK_WITHIN_S = 5.0


def scheduler_processes(cluster: LiveCluster) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(cluster.process.pid).children(recursive=True):
        with suppress(psutil.Error):  # it may end as we look
            if " ".join(process.cmdline()).startswith("ray::ClusterScheduler"):
                found.append(process)
    return found


async def long_stream(client: openai.AsyncOpenAI, index: int) -> list[str]:
    stream = await client.completions.create(
        model="shoal-demo",
        prompt=[20 + index, 30, 40 + index, 50],
        temperature=0,
        max_tokens=NUM_TOKENS,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    return [c.choices[0].text async for c in stream if c.choices]


async def first_snapshot(address: str) -> scheduler_pb2.ClusterSnapshot:
    """Raises: grpc.aio.AioRpcError while nobody is there."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = scheduler_pb2_grpc.SchedulerStub(channel).WatchCluster(
            scheduler_pb2.WatchClusterRequest(gateway_id="test"), timeout=2
        )
        async for snapshot in call:
            return snapshot
    raise AssertionError("no snapshot")


async def ready_again(address: str, old_id: str, killed_at: float) -> float:
    """Seconds until another incarnation, at the old address, knows the replica and its load."""
    while time.monotonic() - killed_at < 60:
        with suppress(grpc.aio.AioRpcError):
            snapshot = await first_snapshot(address)
            replicas = [r for d in snapshot.deployments for r in d.replicas]
            if snapshot.scheduler_id != old_id and any(
                r.state == scheduler_pb2.REPLICA_STATE_READY and r.load.num_running
                for r in replicas
            ):
                return time.monotonic() - killed_at
        await asyncio.sleep(0.05)
    raise AssertionError("the scheduler did not come back")


async def test_streams_go_on_and_the_scheduler_returns(cluster: LiveCluster) -> None:
    async with openai.AsyncOpenAI(base_url=cluster.api, api_key="EMPTY", max_retries=0) as client:
        undisturbed = await asyncio.gather(*(long_stream(client, i) for i in range(NUM_STREAMS)))
        status = await asyncio.to_thread(cluster.status)
        streams = [asyncio.create_task(long_stream(client, i)) for i in range(NUM_STREAMS)]
        await asyncio.sleep(1.0)
        assert not any(s.done() for s in streams), "the streams must still run at the kill"
        (scheduler,) = scheduler_processes(cluster)
        os.kill(scheduler.pid, signal.SIGKILL)
        killed_at = time.monotonic()
        answer = await client.completions.create(
            model="shoal-demo", prompt="I love", max_tokens=4, temperature=0
        )
        assert answer.usage is not None and answer.usage.completion_tokens > 0
        seconds = await ready_again(status["address"], status["scheduler_id"], killed_at)
        print(f"scheduler back with full state after {seconds:.1f} s")
        disturbed = await asyncio.gather(*streams)
    assert ["".join(s) for s in disturbed] == ["".join(s) for s in undisturbed]
    assert seconds <= BACK_WITHIN_S
