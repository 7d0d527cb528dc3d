"""Errors as real clients understand them, and what is no error."""

import openai
import pytest
from langchain_core.exceptions import ContextOverflowError
from langchain_openai import ChatOpenAI

from gateway.errors import ContextLengthError, DeadlineError, OverloadedError, UnavailableError
from tests.gateway.fake_router import FakeRouter
from tests.gateway.test_server import openai_client, running

HI = [{"role": "user", "content": "hi"}]
LONG = "the cat sat on the mat " * 100


async def test_langchain_knows_an_overlong_prompt():
    async with running(FakeRouter()) as gateway:
        model = ChatOpenAI(
            model="tiny", base_url=f"{gateway.url}/v1", api_key="sk", max_retries=0, timeout=10
        )
        with pytest.raises(ContextOverflowError):
            await model.ainvoke(LONG)
        with pytest.raises(ContextOverflowError):
            async for _ in model.astream(LONG):
                pass


def test_litellm_knows_it_by_this_phrase():
    assert "maximum context length is 128 tokens" in ContextLengthError(200, 128).message


async def test_openai_client_knows_an_overlong_prompt():
    async with running(FakeRouter()) as gateway, openai_client(gateway.url) as client:
        with pytest.raises(openai.BadRequestError) as error:
            await client.completions.create(model="tiny", prompt=LONG)
    assert error.value.code == "context_length_exceeded"
    assert error.value.param == "prompt"


@pytest.mark.parametrize(
    ("refusal", "status", "code", "retry_after"),
    [
        (OverloadedError("full", retry_after_s=3.4), 503, "overloaded", "3"),
        (UnavailableError("gone", retry_after_s=0.1), 503, "unavailable", "1"),
        (DeadlineError("late"), 504, "timeout", None),
    ],
)
@pytest.mark.parametrize("streams", [False, True])
async def test_refusals_of_the_cluster_are_real_statuses(
    client, router, refusal, status, code, retry_after, streams
):
    router.refusal = refusal
    body = {"model": "tiny", "messages": HI, "stream": streams}
    response = await client.post("/v1/chat/completions", json=body)
    assert response.status_code == status
    error = response.json()["error"]
    assert (error["code"], error["type"], error["param"]) == (code, "server_error", None)
    assert response.headers.get("retry-after") == retry_after


NEUTRAL = {
    "best_of": 1,
    "length_penalty": 1.0,
    "use_beam_search": False,
    "stream_interval": 1,
    "truncation_side": "left",
    "modalities": ["text"],
    "functions": [],
    "documents": None,
    "echo": False,
    "kv_transfer_params": {},
}


async def test_known_parameters_that_ask_for_nothing_are_no_error(client):
    body = {"model": "tiny", "messages": HI, **NEUTRAL}
    assert (await client.post("/v1/chat/completions", json=body)).status_code == 200


async def test_unknown_parameters_are_ignored(client):
    body = {"model": "tiny", "messages": HI, "a_new_thing": {"x": [1]}, "store": True}
    assert (await client.post("/v1/chat/completions", json=body)).status_code == 200


async def test_echo_is_a_completions_own(client):
    body = {"model": "tiny", "prompt": "hello", "echo": True}
    answer = (await client.post("/v1/completions", json=body)).json()
    assert answer["choices"][0]["text"].startswith("hello")
