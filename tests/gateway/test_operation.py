"""Models, tokens, probes, metrics, and what holds for every answer."""

import json
import re

import httpx
import jsonschema
import pytest

from gateway.app import create_app
from gateway.config import GatewayConfig
from tests.gateway.fake_router import FakeRouter, FakeView, ids_of
from tests.gateway.small_tokenizer import BOS_ID

HI = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


def client_of(config: GatewayConfig, view: FakeView | None = None) -> httpx.AsyncClient:
    app = create_app(config, FakeRouter(), view or FakeView())
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway")


async def test_models_have_a_card_for_each_name(client):
    cards = (await client.get("/v1/models")).json()
    assert [card["id"] for card in cards["data"]] == ["tiny", "org/tiny-alias"]
    assert cards["data"][0] == {
        "id": "tiny",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "shoal",
        "root": "/models/tiny",
        "parent": None,
        "max_model_len": 128,
    }


@pytest.mark.parametrize("path", ["/v1/models/org/tiny-alias", "/v1/models/org%2Ftiny-alias"])
async def test_names_with_slashes_have_cards(client, path):
    assert (await client.get(path)).json()["id"] == "org/tiny-alias"


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_tokenize_and_back(client, prefix):
    body = {"model": "tiny", "prompt": "hello the", "return_token_strs": True}
    answer = (await client.post(f"{prefix}/tokenize", json=body)).json()
    assert answer == {
        "count": 3,
        "max_model_len": 128,
        "tokens": [BOS_ID, *ids_of("hello the")],
        "token_strs": ["<s>", "hello", "Ġthe"],
    }
    back = {"model": "tiny", "tokens": answer["tokens"]}
    assert (await client.post(f"{prefix}/detokenize", json=back)).json() == {
        "prompt": "<s>hello the"
    }
    back["skip_special_tokens"] = True
    assert (await client.post(f"{prefix}/detokenize", json=back)).json() == {"prompt": "hello the"}


async def test_messages_tokenize_as_a_chat_would(client, router):
    answer = (await client.post("/tokenize", json=HI)).json()
    await client.post("/v1/chat/completions", json=HI)
    assert answer["tokens"] == router.request.prompt_token_ids


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/ping", "/version"])
async def test_probes_need_no_key(path):
    async with client_of(GatewayConfig(api_keys=("sk",))) as client:
        assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/docs", "/openapi.json", "/nowhere"])
async def test_all_else_needs_a_key(path):
    async with client_of(GatewayConfig(api_keys=("sk",))) as client:
        assert (await client.get(path)).status_code == 401


async def test_load_counts_running_requests_but_not_itself(app, client):
    assert (await client.get("/load")).json() == {"server_load": 0}
    app.state.gateway.drain.enter()
    assert (await client.get("/load")).json() == {"server_load": 1}


async def test_metrics_may_be_open_and_without_the_engines():
    view = FakeView()
    view.exposition = b"engine 1\n"
    async with client_of(GatewayConfig(api_keys=("sk",), has_open_metrics=True), view) as client:
        assert (await client.get("/metrics")).text.endswith("\nengine 1\n")
        assert (await client.get("/v1/models")).status_code == 401
    config = GatewayConfig(shows_engine_metrics=False)
    async with client_of(config, view) as client:
        assert "engine 1" not in (await client.get("/metrics")).text


@pytest.mark.parametrize("path", ["/health", "/readyz"])
async def test_health_tells_what_the_cluster_tells(client, view, path):
    view.reason = "No replica of tiny makes progress."
    response = await client.get(path)
    assert response.status_code == 503
    assert response.json()["error"]["message"] == view.reason
    assert (await client.get("/livez")).status_code == 200


async def test_not_ready_without_a_model(client, view):
    view.known = []
    assert (await client.get("/readyz")).status_code == 503


async def test_draining_refuses_all_but_probes(app, client):
    app.state.gateway.drain.is_draining = True
    response = await client.post("/v1/chat/completions", json=HI)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.headers["connection"] == "close"
    assert (await client.get("/readyz")).status_code == 503
    assert (await client.get("/livez")).status_code == 200
    assert (await client.get("/metrics")).status_code == 200


async def test_request_id_is_the_clients_where_usable(client, router):
    response = await client.post(
        "/v1/chat/completions", json=HI, headers={"X-Request-Id": "trace-42"}
    )
    assert response.headers["x-request-id"] == "trace-42"
    assert response.json()["id"] == "chatcmpl-trace-42"
    assert router.request.request_id.startswith("chatcmpl-trace-42-")


@pytest.mark.parametrize("given", ["a b", "x" * 129, "é", '"'])
async def test_unusable_request_ids_are_replaced(client, given):
    response = await client.get("/livez", headers={"X-Request-Id": given.encode("latin-1")})
    assert len(response.headers["x-request-id"]) == 32


async def test_body_may_name_the_request(client):
    answer = (await client.post("/v1/chat/completions", json={**HI, "request_id": "mine"})).json()
    assert answer["id"] == "chatcmpl-mine"


async def test_trace_context_is_passed_on(client, router):
    parent = f"00-{'a' * 32}-{'b' * 16}-01"
    await client.post("/v1/chat/completions", json=HI, headers={"traceparent": parent})
    await client.post("/v1/chat/completions", json=HI, headers={"traceparent": "nonsense"})
    assert [request.traceparent for request in router.requests] == [parent, ""]


async def test_the_key_is_the_tenant():
    router = FakeRouter()
    app = create_app(GatewayConfig(api_keys=("sk",)), router, FakeView())
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        body = {**HI, "user": "spoof"}
        await client.post("/v1/chat/completions", json=body, headers={"authorization": "Bearer sk"})
    assert router.request.tenant.startswith("key-") and len(router.request.tenant) == 16


async def test_too_large_bodies_are_refused_by_their_header():
    async with client_of(GatewayConfig(max_body_bytes=100)) as client:
        response = await client.post("/v1/completions", content=b"x" * 101)
    assert response.status_code == 413
    assert "100 bytes" in response.json()["error"]["message"]


async def test_too_large_bodies_are_refused_without_a_header():
    async def body():
        for _ in range(20):
            yield b'{"prompt": '

    async with client_of(GatewayConfig(max_body_bytes=100)) as client:
        response = await client.post(
            "/v1/completions", content=body(), headers={"content-type": "application/json"}
        )
    assert response.status_code == 413
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_bugs_are_a_500_in_the_usual_form(client, router, caplog):
    router.start = None
    response = await client.post("/v1/chat/completions", json=HI)
    assert response.status_code == 500
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert "NoneType" not in response.text
    assert response.headers["x-request-id"] in caplog.text


async def test_large_prompts_are_encoded_and_answered(client, router):
    body = {"model": "tiny", "prompt": "a" * 100_000, "truncate_prompt_tokens": 20}
    assert (await client.post("/v1/completions", json=body)).status_code == 200
    assert len(router.request.prompt_token_ids) == 20


async def test_probes_are_open_behind_a_prefix_too():
    app = create_app(GatewayConfig(api_keys=("sk",)), FakeRouter(), FakeView())
    transport = httpx.ASGITransport(app=app, root_path="/llm")
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        assert (await client.get("/llm/readyz")).status_code == 200
        assert (await client.get("/llm/v1/models")).status_code == 401


async def test_openapi_document_tells_the_errors_that_are_answered(client):
    document = (await client.get("/openapi.json")).json()
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert "422" not in chat["responses"]
    reference = chat["responses"]["default"]["content"]["application/json"]["schema"]["$ref"]
    assert reference.rsplit("/", 1)[1] in document["components"]["schemas"]
    body = chat["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    fields = document["components"]["schemas"][body.rsplit("/", 1)[1]]["properties"]
    assert {"messages", "temperature", "top_k", "logit_bias"} <= set(fields)
    assert (await client.get("/docs")).status_code == 200


async def test_openapi_document_tells_every_answer(client):
    """Streams by their media type, objects by schemas whose references all exist."""
    document = (await client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    references = re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document))
    assert set(references) <= set(schemas)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            content = operation["responses"]["200"]["content"]
            assert all(entry["schema"] for entry in content.values()), path
            assert ("text/event-stream" in content) == path.endswith("/completions")
            is_open = path in ("/livez", "/readyz", "/health", "/version")
            assert operation["security"] == ([] if is_open else [{"apiKey": []}, {}]), path
    assert document["components"]["securitySchemes"]["apiKey"]["scheme"] == "bearer"


async def test_answers_are_what_the_document_tells(client):
    document = (await client.get("/openapi.json")).json()
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
    full = {"logprobs": True, "top_logprobs": 2, "return_token_ids": True, "prompt_logprobs": 1}
    text = {"model": "tiny", "prompt": "the", "echo": True, "logprobs": 1, "prompt_logprobs": 1}
    for path, body in (
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", {**chat, **full}),
        ("/v1/completions", text),
        ("/tokenize", {"prompt": "the", "return_token_strs": True}),
        ("/detokenize", {"tokens": [5]}),
        ("/v1/models", None),
        ("/version", None),
        ("/load", None),
    ):
        sent = client.get(path) if body is None else client.post(path, json=body)
        answer = (await sent).json()
        operation = document["paths"][path]["get" if body is None else "post"]
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        validator = jsonschema.Draft202012Validator({**document, **schema})
        validator.validate(answer)
        assert not validator.is_valid([]) and not validator.is_valid({}), path
