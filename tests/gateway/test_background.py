"""Tasks beside the requests end with their block, and do not fail unseen."""

import asyncio

import pytest

from gateway.background import in_background


async def test_the_task_has_ended_with_the_block():
    steps = []

    async def work() -> None:
        steps.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            steps.append("ended")

    async with in_background(work(), "work"):
        await asyncio.sleep(0)
        assert steps == ["begun"]
    assert steps == ["begun", "ended"]


async def test_a_failure_is_told_while_the_block_goes_on(caplog: pytest.LogCaptureFixture):
    async def work() -> None:
        raise LookupError("the reason")

    async with in_background(work(), "work"):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert "background task=work ended" in caplog.text
        assert "the reason" in caplog.text
