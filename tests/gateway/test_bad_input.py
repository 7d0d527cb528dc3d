"""Every wrong request gets its status and OpenAI's error object, and the server stays unharmed."""

import json

import httpx
import pytest

from gateway.app import create_app
from gateway.config import GatewayConfig
from tests.bad_input import JSON, TEXT, BadInput, bad_inputs, bad_keys
from tests.gateway.fake_router import MODEL, FakeRouter, FakeView

ROWS = bad_inputs("tiny", MODEL.max_model_len, MODEL.vocab_size)


async def send(client: httpx.AsyncClient, row: BadInput) -> httpx.Response:
    content = row.body
    if content is not None and not isinstance(content, bytes):
        content = json.dumps(content).encode()
    return await client.request(row.method, row.path, content=content, headers=row.headers)


def check(response: httpx.Response, row: BadInput) -> None:
    assert response.status_code == row.status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"], error["code"]) == (row.param, row.code), error
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert len(response.content) < 2000
    assert response.headers["x-request-id"]


def test_the_table_is_long_and_its_names_differ():
    assert len(ROWS) >= 45
    assert len({row.name for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_bad_input_is_refused(client, router, row):
    check(await send(client, row), row)
    assert router.requests == []
    good = await client.post(TEXT, json={"model": "tiny", "prompt": "hi"})
    assert good.status_code == 200


@pytest.mark.parametrize("row", bad_keys("tiny"), ids=lambda row: row.name)
async def test_without_a_good_key_nothing_is_answered(row):
    app = create_app(GatewayConfig(api_keys=("sk-one", "sk-two")), FakeRouter(), FakeView())
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        response = await send(client, row)
        check(response, row)
        assert response.headers["www-authenticate"] == "Bearer"
        good = await client.post(
            TEXT,
            content=json.dumps({"model": "tiny", "prompt": "hi"}),
            headers={**JSON, "authorization": "Bearer sk-two"},
        )
        assert good.status_code == 200


async def test_errors_quote_little_of_huge_input(client):
    body = {"model": "tiny", "prompt": [["x" * 1000] * 1000]}
    response = await client.post(TEXT, json=body)
    assert response.status_code == 400
    assert len(response.content) < 1000
