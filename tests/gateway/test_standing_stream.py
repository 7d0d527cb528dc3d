"""Supervision of long-lived streams, without any gRPC."""

import asyncio
import time

import pytest

from gateway.standing_stream import Backoff, Loss, SendPace, keep_open, run_until_lost


async def forever() -> None:
    await asyncio.Event().wait()


async def broken() -> None:
    raise ValueError("boom")


async def ended() -> None:
    return


def far() -> float:
    return time.monotonic() + 60.0


async def test_first_part_to_end_ends_the_stream() -> None:
    loss = await run_until_lost([forever(), ended()], far)
    assert loss.message == "the peer ended the stream"
    assert loss.code is None


async def test_failure_of_a_part_is_the_reason() -> None:
    loss = await run_until_lost([forever(), broken()], far)
    assert loss.message == "ValueError: boom"


async def test_silence_ends_the_stream_and_its_parts() -> None:
    has_ended = asyncio.Event()

    async def part() -> None:
        try:
            await forever()
        finally:
            has_ended.set()

    lost_at = time.monotonic() + 0.05
    loss = await run_until_lost([part()], lambda: lost_at)
    assert loss.message == "the peer is silent"
    assert has_ended.is_set()


async def test_cancelling_the_supervisor_ends_the_parts() -> None:
    part = asyncio.create_task(forever())

    async def waits_for_part() -> None:
        await part

    supervisor = asyncio.create_task(run_until_lost([waits_for_part()], far))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    supervisor.cancel()
    await asyncio.gather(supervisor, return_exceptions=True)
    assert part.cancelled()


def test_backoff_doubles_to_its_limit_and_resets() -> None:
    backoff = Backoff(first_s=0.1, limit_s=0.4)
    for ceiling in (0.1, 0.2, 0.4, 0.4):
        assert ceiling / 2 <= backoff.next_s() <= ceiling
    backoff.reset()
    assert backoff.next_s() <= 0.1


async def test_a_session_that_fails_of_our_own_fault_is_followed_by_another(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reasons: list[str] = []
    is_second = asyncio.Event()

    async def session() -> Loss:
        if not reasons:
            raise LookupError("a fault of ours")
        is_second.set()
        await forever()
        raise AssertionError

    keeper = asyncio.create_task(keep_open(session, reasons.append, Backoff(first_s=0.001)))
    async with asyncio.timeout(5):
        await is_second.wait()
    assert reasons == ["LookupError: a fault of ours"]
    assert "a fault of ours" in caplog.text
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)
    assert keeper.cancelled()
    assert reasons[1:] == ["the connection was closed"]


async def test_messages_are_an_interval_apart_and_the_first_leaves_at_once() -> None:
    pace, times = SendPace(interval_s=0.05), []
    for _ in range(4):
        await pace.wait()
        times.append(time.monotonic())
    assert times[-1] - times[0] >= 0.14
    await asyncio.sleep(0.06)
    before = time.monotonic()
    await pace.wait()
    assert time.monotonic() - before < 0.04
