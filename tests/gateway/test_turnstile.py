"""Requests that come together pass one by one; what else the loop has to do comes in between."""

import asyncio
import socket

import pytest

from gateway.turnstile import Turnstile

_SHORT_S = 1.0


async def test_who_comes_alone_passes_at_once() -> None:
    turnstile = Turnstile()
    for _ in range(3):
        entering = turnstile.enter()
        with pytest.raises(StopIteration):
            entering.send(None)  # never suspends
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_sockets_are_looked_at_between_any_two() -> None:
    turnstile = Turnstile()
    near, far = socket.socketpair()
    near.setblocking(False)
    seen: list[str] = []

    async def request(name: str) -> None:
        await turnstile.enter()
        seen.append(name)
        far.send(name.encode())

    async def listen() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(5):
            seen.append("heard " + (await loop.sock_recv(near, 1)).decode())

    listening = asyncio.create_task(listen())
    await asyncio.sleep(0)
    async with asyncio.timeout(_SHORT_S):
        with near, far:
            await asyncio.gather(*(request(name) for name in "abcde"), listening)
    order = [name for name in seen if len(name) == 1]
    assert order == list("abcde")
    # What the first one wrote was read long before the last one passed.
    assert seen.index("heard a") < seen.index("d")


async def test_who_gives_up_does_not_hold_the_others() -> None:
    turnstile = Turnstile()
    passed: list[int] = []

    async def request(number: int) -> None:
        await turnstile.enter()
        passed.append(number)

    tasks = [asyncio.create_task(request(number)) for number in range(4)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    tasks[2].cancel()
    async with asyncio.timeout(_SHORT_S):
        await asyncio.wait(tasks)
    assert passed == [0, 3]
    async with asyncio.timeout(_SHORT_S):
        await turnstile.enter()
