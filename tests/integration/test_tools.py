"""Tool calls and structured answers on a real cluster: the demo model knows nothing of tools, but
it obeys, because it can write nothing else.
"""

import json
from typing import Annotated, Literal

import pytest
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import OpenAI
from pydantic import BaseModel, Field

from tests.live import LiveCluster

pytestmark = pytest.mark.ray

MODEL = "shoal-demo"


class Weather(BaseModel):
    """What the weather is like."""

    city: str = Field(max_length=12)
    unit: Literal["celsius", "fahrenheit"]


@tool
def get_weather(city: Annotated[str, Field(max_length=12)], days: Literal[1, 2, 3]) -> str:
    """Look up the weather of a city."""
    return f"{city}: sunny for {days} days"


@tool
def get_time() -> str:
    """Look up what time it is."""
    return "noon"


@pytest.fixture
def llm(cluster: LiveCluster) -> ChatOpenAI:
    return ChatOpenAI(
        model=MODEL, openai_api_key="EMPTY", openai_api_base=cluster.api, temperature=0
    )


@pytest.fixture
def openai(cluster: LiveCluster) -> OpenAI:
    return OpenAI(base_url=cluster.api, api_key="EMPTY", max_retries=0, timeout=60)


def check(name: str, arguments: dict[str, object]) -> None:
    assert name in ("get_weather", "get_time")
    wanted = get_weather if name == "get_weather" else get_time
    assert wanted.invoke(arguments)  # validates them first


def test_a_tool_is_called_where_one_must_be(llm: ChatOpenAI) -> None:
    answer = llm.bind_tools([get_weather, get_time], tool_choice="any").invoke("Weather in Rome?")
    assert answer.tool_calls and not answer.invalid_tool_calls
    assert answer.content == ""
    assert answer.response_metadata["finish_reason"] == "tool_calls"
    for call in answer.tool_calls:
        check(call["name"], call["args"])


def test_the_named_tool_is_called(llm: ChatOpenAI) -> None:
    bound = llm.bind_tools([get_time, get_weather], tool_choice="get_weather")
    (call,) = bound.invoke("Hello").tool_calls
    assert call["name"] == "get_weather"
    check(call["name"], call["args"])


def test_streamed_calls_are_the_whole_ones(llm: ChatOpenAI) -> None:
    bound = llm.bind_tools([get_weather, get_time], tool_choice="any")
    whole = bound.invoke("Weather in Rome?")
    chunks = list(bound.stream("Weather in Rome?"))
    joined = chunks[0]
    for chunk in chunks[1:]:
        joined = joined + chunk
    assert len(chunks) > 3

    def plain(calls: list) -> list[tuple[str, object]]:
        return [(call["name"], call["args"]) for call in calls]

    assert plain(joined.tool_calls) == plain(whole.tool_calls)


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_structured_output_is_the_class_asked_for(llm: ChatOpenAI, method: str) -> None:
    answer = llm.with_structured_output(Weather, method=method).invoke("Weather in Rome?")
    assert isinstance(answer, Weather)


async def test_a_history_with_calls_and_their_results_is_answered(llm: ChatOpenAI) -> None:
    bound = llm.bind_tools([get_weather], tool_choice="any", parallel_tool_calls=False)
    asked = await bound.ainvoke("Weather in Rome?")
    (call,) = asked.tool_calls
    result = get_weather.invoke(call)
    answer = await llm.bind_tools([get_weather]).ainvoke(
        [("user", "Weather in Rome?"), asked, result, ("user", "Thank you.")], max_tokens=20
    )
    assert isinstance(answer.content, str)


def test_every_choice_keeps_to_its_constraint(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Pick one."}],
        n=3,
        temperature=1.5,
        seed=4,
        frequency_penalty=1,
        logit_bias={"5": 10},
        extra_body={"structured_outputs": {"choice": ["red", "green", "blue"]}},
    )
    assert {choice.message.content for choice in answer.choices} <= {"red", "green", "blue"}
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}


@pytest.mark.parametrize(
    "constraint",
    [
        {"regex": "[0-9]{3}-[a-f]{2}"},
        {"json": {"enum": [12345]}},
    ],
    ids=["regex", "json"],
)
def test_completions_keep_to_their_language(openai: OpenAI, constraint: dict[str, str]) -> None:
    answer = openai.completions.create(
        model=MODEL,
        prompt="I love",
        max_tokens=40,
        temperature=1,
        seed=1,
        extra_body={"structured_outputs": constraint, "ignore_eos": True, "min_tokens": 39},
    )
    (choice,) = answer.choices
    assert len(choice.text) == (6 if "regex" in constraint else 5), choice.text
    assert choice.finish_reason == "stop"


def test_json_mode_answers_json(openai: OpenAI) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    answer = openai.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "A number, please."}],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": {**schema, "additionalProperties": False}},
        },
    )
    content = answer.choices[0].message.content
    assert content is not None and json.loads(content)["n"] in (1, 2)
