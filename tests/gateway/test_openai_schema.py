"""Answers, chunks and errors against OpenAI's own OpenAPI document, where a copy lies beside us."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gateway.errors import EngineError
from gateway.tokens import TokenDelta
from tests.gateway.fake_router import FakeRouter, ids_of, says
from tests.gateway.small_tokenizer import CHAT_TEMPLATE, model_files

DOCUMENT = Path(__file__).parents[3] / "shared/openai-spec/openapi-trimmed.json"
pytestmark = pytest.mark.skipif(not DOCUMENT.exists(), reason="no copy of OpenAI's document")

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
TOOL = {"type": "function", "function": {"name": "add"}}
TEXT = {"model": "tiny", "prompt": "hello"}


def nullable(node: Any) -> Any:
    """The document forbids null where OpenAI itself sends it: not required means nullable."""
    if isinstance(node, list):
        return [nullable(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: nullable(value) for key, value in node.items()}
    required = node.get("required", [])
    properties = node.get("properties")
    if isinstance(properties, dict) and isinstance(required, list):
        node["properties"] = {
            name: schema
            if name in required and not (isinstance(schema, dict) and schema.get("nullable"))
            else {"anyOf": [schema, {"type": "null"}]}
            for name, schema in properties.items()
        }
    return node


@pytest.fixture(scope="module")
def validate():
    document = nullable(json.loads(DOCUMENT.read_text()))
    # Chunks of text completions are CreateCompletionResponses whose choice is not finished yet,
    # and the first echoed token has no logprob: both null in OpenAI's own answers.
    choice = document["components"]["schemas"]["CreateCompletionResponse"]["properties"]["choices"]
    properties = choice["items"]["properties"]
    properties["finish_reason"] = {"anyOf": [properties["finish_reason"], {"type": "null"}]}

    def check(instance: object, name: str) -> None:
        schema = {"$ref": f"#/components/schemas/{name}", **document}
        jsonschema.Draft202012Validator(schema).validate(instance)

    return check


@pytest.mark.parametrize(
    "fields",
    [{}, {"n": 2}, {"logprobs": True, "top_logprobs": 2}, {"stop": " wor"}, {"max_tokens": 1}],
    ids=str,
)
async def test_chat_answers_and_chunks(client, validate, fields):
    whole = await client.post("/v1/chat/completions", json={**CHAT, **fields})
    validate(whole.json(), "CreateChatCompletionResponse")
    options = {"stream": True, "stream_options": {"include_usage": True}}
    response = await client.post("/v1/chat/completions", json={**CHAT, **fields, **options})
    chunks = [json.loads(line[6:]) for line in response.text.split("\n\n")[:-2]]
    assert len(chunks) >= 3
    for chunk in chunks:
        validate(chunk, "CreateChatCompletionStreamResponse")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 2},
        {"logprobs": 2},
        {"stop": " wor"},
        {"echo": True},
        {"prompt": ["a", "b"]},
        {"return_token_ids": True},
    ],
    ids=str,
)
async def test_text_answers_and_chunks(client, validate, fields):
    whole = await client.post("/v1/completions", json={**TEXT, **fields})
    validate(whole.json(), "CreateCompletionResponse")
    options = {"stream": True, "stream_options": {"include_usage": True}}
    response = await client.post("/v1/completions", json={**TEXT, **fields, **options})
    chunks = [json.loads(line[6:]) for line in response.text.split("\n\n")[:-2]]
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] > 0
    for chunk in chunks:
        validate(chunk, "CreateCompletionResponse")


async def test_the_best_of_several(client, validate):
    whole = await client.post("/v1/completions", json={**TEXT, "best_of": 3, "n": 2})
    validate(whole.json(), "CreateCompletionResponse")


@pytest.mark.parametrize("streams", [False, True])
async def test_thoughts_do_not_disturb(client, router, view, validate, streams):
    view.files = model_files("{% if false %}<think></think>{% endif %}" + CHAT_TEMPLATE)
    router.script = says("<think>so</think>yes")
    response = await client.post("/v1/chat/completions", json={**CHAT, "stream": streams})
    if not streams:
        assert response.json()["choices"][0]["message"]["reasoning_content"] == "so"
        validate(response.json(), "CreateChatCompletionResponse")
        return
    assert '"reasoning_content":' in response.text
    for line in response.text.split("\n\n")[:-2]:
        validate(json.loads(line[6:]), "CreateChatCompletionStreamResponse")


async def test_running_usage(client, validate):
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {**CHAT, "stream": True, "stream_options": options}
    response = await client.post("/v1/chat/completions", json=body)
    for line in response.text.split("\n\n")[:-2]:
        validate(json.loads(line[6:]), "CreateChatCompletionStreamResponse")


async def test_an_error_in_a_stream(client, router, validate):
    router.script = lambda request: [[TokenDelta(ids_of("hello"))], EngineError("lost")]
    response = await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    *_, error, done, end = response.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    validate(json.loads(error[6:]), "ErrorResponse")


@pytest.mark.parametrize("choice", ["auto", "required", TOOL])
async def test_calls_in_answers_and_chunks(client, router, validate, choice):
    call = '{"name": "add", "arguments": {"a": 1}}'
    router.script = says(f"[{call}]" if choice == TOOL else call)
    body = {**CHAT, "tools": [TOOL], "tool_choice": choice}
    whole = (await client.post("/v1/chat/completions", json=body)).json()
    assert whole["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'
    validate(whole, "CreateChatCompletionResponse")
    response = await client.post("/v1/chat/completions", json={**body, "stream": True})
    chunks = [json.loads(line[6:]) for line in response.text.split("\n\n")[:-2]]
    assert any("tool_calls" in chunk["choices"][0]["delta"] for chunk in chunks)
    for chunk in chunks:
        validate(chunk, "CreateChatCompletionStreamResponse")


async def test_models(client, validate):
    validate((await client.get("/v1/models")).json(), "ListModelsResponse")
    validate((await client.get("/v1/models/tiny")).json(), "Model")


async def test_errors(client, validate, router: FakeRouter):
    for body in (b"{", json.dumps({**CHAT, "n": 0}).encode()):
        headers = {"content-type": "application/json"}
        response = await client.post("/v1/chat/completions", content=body, headers=headers)
        validate(response.json(), "ErrorResponse")
    validate((await client.get("/nowhere")).json(), "ErrorResponse")


async def test_the_document_is_really_applied(validate):
    with pytest.raises(jsonschema.ValidationError):
        validate({"id": 1}, "CreateChatCompletionResponse")
