"""Mutated bodies: whatever arrives, the answer is an answer or a 4xx, never a failure of ours.

Deterministic: a case is its number. `make test-slow` runs a hundred thousand of them and looks at
the memory. Mutated heads are in test_mutated_heads.py.
"""

import gc
import json
import resource
from collections.abc import Iterator
from copy import deepcopy
from random import Random
from typing import Any

import httpx
import pytest

from gateway.app import create_app
from gateway.config import GatewayConfig
from tests.bad_input import CHAT, TEXT
from tests.gateway.fake_router import FakeRouter, FakeView, says

BODIES: list[tuple[str, dict[str, Any]]] = [
    (
        CHAT,
        {
            "model": "tiny",
            "messages": [
                {"role": "system", "content": "be kind"},
                {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
            "tool_choice": "auto",
            "temperature": 0.5,
            "max_tokens": 4,
            "logit_bias": {"5": 1.5},
            "stop": ["x"],
            "stream_options": {"include_usage": True},
            "stream": True,
            "logprobs": True,
            "top_logprobs": 2,
        },
    ),
    (
        TEXT,
        {
            "model": "tiny",
            "prompt": ["a", "b"],
            "n": 2,
            "echo": True,
            "logprobs": 1,
            "seed": 3,
            "user": "u",
        },
    ),
    (TEXT, {"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 2, "allowed_token_ids": [5, 6]}),
    (CHAT, {"messages": [{"role": "user", "content": "hi"}], "response_format": {"type": "text"}}),
    ("/tokenize", {"model": "tiny", "prompt": "hello", "return_token_strs": True}),
    ("/detokenize", {"model": "tiny", "tokens": [1, 2, 3]}),
]
ODD_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308),
    *("", " ", "a" * 3000, "\x00", "\ud800", "😀", "{}", "none", "auto"),
    *([], {}, [[]], [{}], {"": None}, [None] * 50, {"type": "x"}, [[[[[[]]]]]]),
]
ODD_BYTES = [b"", b"\x00", b"\xff\xfe", b"{", b"}", b'"', b"[" * 500, b"NaN", b"1e999", b"\\u"]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a body with each of its keys or places."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in list(keys):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def mutated(random: Random) -> tuple[str, bytes]:
    path, body = random.choice(BODIES)
    body = json.loads(json.dumps(body))
    for _ in range(random.randint(1, 3)):
        container, key = random.choice(list(places(body)) or [({"none": 0}, "none")])
        match random.randrange(4):
            case 0:
                # A copy: the next mutation may be one of what this one put there.
                container[key] = deepcopy(random.choice(ODD_VALUES))
            case 1 if isinstance(container, dict):
                container[random.choice(ODD_VALUES[13:22])] = container.get(key)
            case 2:
                container.pop(key)
            case _:
                container[key] = [container[key]]
    data = json.dumps(body).encode()
    if random.random() < 0.3:
        place = random.randrange(len(data))
        data = data[:place] + random.choice(ODD_BYTES) + data[place + random.randrange(3) :]
    return path, data


async def send_mutations(client: httpx.AsyncClient, numbers: range) -> None:
    for number in numbers:
        path, data = mutated(Random(number))
        response = await client.post(
            path, content=data, headers={"content-type": "application/json"}
        )
        assert response.status_code in (200, 400, 404), (number, data, response.text)
        if response.status_code != 200:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}, number
            assert len(response.content) < 4000, number


def client_of(router: FakeRouter) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=create_app(GatewayConfig(), router, FakeView()))
    return httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=30)


class ForgetfulRouter(FakeRouter):
    """Keeps no request: a test of memory must not grow by itself."""

    async def start(self, request: Any) -> Any:
        stream = await super().start(request)
        self.requests.clear()
        self.streams.clear()
        return stream


async def test_mutated_bodies_are_answered_or_refused():
    async with client_of(ForgetfulRouter(says("hello"))) as client:
        await send_mutations(client, range(1500))


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_a_hundred_thousand_mutated_bodies_leave_no_trace_in_memory():
    async with client_of(ForgetfulRouter(says("hello"))) as client:
        await send_mutations(client, range(20_000))
        gc.collect()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        await send_mutations(client, range(20_000, 100_000))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 30_000, f"{grown} KiB more"
