"""kill -9 of the ClusterScheduler: live streams never need it, and it comes back with its full
state.
"""

import asyncio
import os
import signal
import time

import openai
import psutil
import pytest

from tests.live import LiveCluster

pytestmark = [pytest.mark.chaos, pytest.mark.ray]

NUM_STREAMS = 32
NUM_TOKENS = 300
BACK_WITHIN_S = 5.0


def scheduler_processes() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        title = " ".join(process.info["cmdline"] or [])
        if title.startswith("ray::") and "Scheduler" in title:
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


async def ready_again(cluster: LiveCluster, old_pid: int) -> float:
    """Seconds until another scheduler process serves the full state: one ready replica."""
    started = time.monotonic()
    while time.monotonic() - started < 60:
        alive = [p for p in scheduler_processes() if p.pid != old_pid]
        if alive:
            status = await asyncio.to_thread(cluster.status)
            if "ready" in str(status).lower():
                return time.monotonic() - started
        await asyncio.sleep(0.05)
    raise AssertionError("the scheduler did not come back")


async def test_streams_go_on_and_the_scheduler_returns(cluster: LiveCluster) -> None:
    async with openai.AsyncOpenAI(base_url=cluster.api, api_key="EMPTY", max_retries=0) as client:
        undisturbed = await asyncio.gather(*(long_stream(client, i) for i in range(NUM_STREAMS)))
        streams = [asyncio.create_task(long_stream(client, i)) for i in range(NUM_STREAMS)]
        await asyncio.sleep(1.0)
        assert not any(s.done() for s in streams), "the streams must still run at the kill"
        (scheduler,) = scheduler_processes()
        os.kill(scheduler.pid, signal.SIGKILL)
        answer = await client.completions.create(
            model="shoal-demo", prompt="I love", max_tokens=4, temperature=0
        )
        assert answer.usage is not None and answer.usage.completion_tokens > 0
        seconds = await ready_again(cluster, scheduler.pid)
        print(f"scheduler back with full state after {seconds:.1f} s")
        disturbed = await asyncio.gather(*streams)
    assert ["".join(s) for s in disturbed] == ["".join(s) for s in undisturbed]
    assert seconds <= BACK_WITHIN_S
