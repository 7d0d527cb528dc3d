"""LiteLLM, which many gateways and agents are built on: its exceptions decide what they retry."""

import json

import pytest

from tests.clients.asks import HELLO, MODEL, SYSTEM, TOO_LONG, WEATHER_TOOL, Fish

litellm = pytest.importorskip("litellm")
pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("default")]

CHAT = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": HELLO}]


@pytest.fixture(params=["openai", "hosted_vllm"])
def ask(api, request):
    """Its provider for OpenAI's own API, and the one for vLLM."""

    def complete(messages=CHAT, model=MODEL, **fields):
        return litellm.completion(
            model=f"{request.param}/{model}",
            api_base=api,
            api_key="unused",
            messages=messages,
            num_retries=0,
            max_tokens=fields.pop("max_tokens", 60),
            temperature=0,
            **fields,
        )

    return complete


def test_chat(ask):
    answer = ask()
    assert answer.choices[0].message.content.strip()
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_streamed_as_whole(ask):
    whole = ask().choices[0].message.content
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    rebuilt = litellm.stream_chunk_builder(chunks, messages=CHAT)
    assert rebuilt.choices[0].message.content == whole and rebuilt.usage.completion_tokens > 0


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_tool_call(ask, choice):
    answer = ask(tools=[WEATHER_TOOL], tool_choice=choice, parallel_tool_calls=False)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")
    streamed = litellm.stream_chunk_builder(
        list(ask(tools=[WEATHER_TOOL], tool_choice=choice, parallel_tool_calls=False, stream=True))
    )
    (again,) = streamed.choices[0].message.tool_calls
    assert again.function.arguments == call.function.arguments


def test_the_result_of_a_call_goes_back(ask):
    answer = ask(tools=[WEATHER_TOOL], tool_choice="required", parallel_tool_calls=False)
    message = answer.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "Sunny."}
    assert ask([*CHAT, message.model_dump(), result], tools=[WEATHER_TOOL]).choices


def test_structured_output(ask):
    answer = ask(response_format=Fish)
    Fish.model_validate_json(answer.choices[0].message.content)


def test_an_overlong_prompt_is_told_as_one(ask):
    with pytest.raises(litellm.ContextWindowExceededError):
        ask([{"role": "user", "content": TOO_LONG}])


def test_a_wrong_model_does_not_exist(ask):
    with pytest.raises(litellm.NotFoundError, match="does not exist"):
        ask(model="no-such-model")
