"""kill -9 of a tensor-parallel rank under live streams: a pause, then every stream as undisturbed.

There is one replica only, so all of them have to wait for its next incarnation and go on there with
what they had sent before.
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

NUM_STREAMS = 16
NUM_TOKENS = 900


async def long_stream(client: openai.AsyncOpenAI, index: int) -> tuple[str, float]:
    """The text, and the longest gap between two chunks in seconds."""
    stream = await client.completions.create(
        model="shoal-demo",
        prompt=[25 + index, 35, 45 + index],
        temperature=0.8,
        seed=index,
        max_tokens=NUM_TOKENS,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    text, gap_s, last = "", 0.0, time.monotonic()
    async for chunk in stream:
        now = time.monotonic()
        gap_s, last = max(gap_s, now - last), now
        text += chunk.choices[0].text if chunk.choices else ""
    return text, gap_s


def shards(cluster: LiveCluster) -> list[int]:
    (deployment,) = cluster.status()["deployments"]
    (replica,) = deployment["replicas"]
    return [int(pid) for pid in replica["pids"]]


@pytest.mark.parametrize("rank", [1, 0])
async def test_streams_pause_and_go_on(cluster: LiveCluster, rank: int) -> None:
    async with openai.AsyncOpenAI(base_url=cluster.api, api_key="EMPTY", max_retries=0) as client:
        undisturbed = await asyncio.gather(*(long_stream(client, i) for i in range(NUM_STREAMS)))
        pids = await asyncio.to_thread(shards, cluster)
        streams = [asyncio.create_task(long_stream(client, i)) for i in range(NUM_STREAMS)]
        await asyncio.sleep(0.7)
        assert not any(s.done() for s in streams), "the streams must still run at the kill"
        os.kill(pids[rank], signal.SIGKILL)
        disturbed = await asyncio.gather(*streams)
    assert [text for text, _ in disturbed] == [text for text, _ in undisturbed]
    assert not any(psutil.pid_exists(pid) for pid in pids), "the whole group must be replaced"
    print(f"rank {rank} killed: longest pause {max(gap for _, gap in disturbed):.1f} s")
