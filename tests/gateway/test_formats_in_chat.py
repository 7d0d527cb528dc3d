"""Each format through the chat route, found by its chat template alone: whole, streamed through the
openai client's own accumulation, and in a history."""

import json
import re
from dataclasses import replace

import httpx
import pytest
from openai import AsyncOpenAI
from tokenizers import AddedToken, Tokenizer

from gateway.text.model_text import TextModel
from tests.gateway.fake_router import MODEL, says, tokenizer
from tests.gateway.parsers.writers import ALL_FORMATS, TOOLS, write
from tests.gateway.small_tokenizer import model_files

HI = [{"role": "user", "content": "hi"}]
NAMED = "{{ c.function.name }}"
ARGUMENTS = "{{ c.function.arguments | tojson }}"
OBJECT = f'{{"name": "{NAMED}", "arguments": {ARGUMENTS}}}'
PARAMETERS = f'{{"name": "{NAMED}", "parameters": {ARGUMENTS}}}'
TAGGED_ARGUMENTS = "{% for k, v in c.function.arguments.items() %}BODY{% endfor %}"


def _each(head: str, body: str, tail: str) -> str:
    return head + TAGGED_ARGUMENTS.replace("BODY", body) + tail


# How a template writes one call `c`, in as much as the format is told by it.
CALLS = {
    "json": OBJECT,
    "hermes": f"<tool_call>\n{OBJECT}\n</tool_call>",
    "llama3_json": f"<|python_tag|>{PARAMETERS}",
    "pythonic": "{# [func_name1(params_name1=params_value1)] #}" + f"[{NAMED}()]",
    "olmo3": f"<function_calls>{NAMED}()</function_calls>",
    "lfm2": f"<|tool_call_start|>[{NAMED}()]<|tool_call_end|>",
    "mistral": f"[TOOL_CALLS]{NAMED}[ARGS]{ARGUMENTS}",
    "deepseek_v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>"
    f"{NAMED}\n```json\n{ARGUMENTS}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "deepseek_v31": f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{NAMED}<｜tool▁sep｜>{ARGUMENTS}"
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "deepseek_v32": f'<｜DSML｜function_calls><｜DSML｜invoke name="{NAMED}"></｜DSML｜invoke>',
    "glm45": _each(
        f"<tool_call>{NAMED}\n",
        "<arg_key>{{ k }}</arg_key>\n<arg_value>{{ v }}</arg_value>\n",
        "</tool_call>",
    ),
    "glm47": _each(
        f"<tool_call>{NAMED}",
        "<arg_key>{{ k }}</arg_key><arg_value>{{ v }}</arg_value>",
        "</tool_call>",
    ),
    "qwen3_coder": _each(
        f"<tool_call>\n<function={NAMED}>\n",
        "<parameter={{ k }}>\n{{ v }}\n</parameter>\n",
        "</function>\n</tool_call>",
    ),
    "seed_oss": _each(
        f"<seed:tool_call>\n<function={NAMED}>\n",
        "<parameter={{ k }}>{{ v }}</parameter>\n",
        "</function>\n</seed:tool_call>",
    ),
    "minimax_m2": f'<minimax:tool_call><invoke name="{NAMED}"></invoke></minimax:tool_call>',
    "kimi_k2": f"<|tool_calls_section_begin|><|tool_call_begin|>functions.{NAMED}:0"
    f"<|tool_call_argument_begin|>{ARGUMENTS}<|tool_call_end|><|tool_calls_section_end|>",
    "granite": f"<|tool_call|>[{OBJECT}]",
    "phi4_mini_json": f"<|tool_call|>[{OBJECT}]<|/tool_call|>",
    "jamba": f"<tool_calls>[{OBJECT}]</tool_calls>",
    "nemotron_json": f"<TOOLCALL>[{OBJECT}]</TOOLCALL>",
    "internlm": f"<|action_start|><|plugin|>{PARAMETERS}<|action_end|>",
    "cohere_command3": f'<|START_ACTION|>[{{"tool_name": "{NAMED}"}}]<|END_ACTION|>',
    "gemma4": f"<|tool_call>call:{NAMED}{{}}<tool_call|>",
    "functiongemma": f"<start_function_call>call:{NAMED}{{}}<end_function_call>",
    "openai": f"<|start|>assistant<|channel|>commentary to=functions.{NAMED} <|constrain|>json"
    f"<|message|>{ARGUMENTS}<|call|>",
}
FORMATS = {one.name: one for one in ALL_FORMATS}
MARK = re.compile(
    r"</?[a-z_:]+>|<\|[a-z_]+>|<[a-z_]+\|>|<\|[^<>]+\|>|<｜[^<>]+｜>|｜DSML｜|\[[A-Z_]{3,}\]"
)
EACH = pytest.mark.parametrize("name", CALLS)
CITY = ("get_weather", {"city": 'São "Paulo"', "loud": True})


def template(name: str) -> str:
    return (
        "{% for m in messages %}{{ m.role }}:{{ m.content }}"
        "{% for c in m.tool_calls or [] %}" + CALLS[name] + "{% endfor %}\n{% endfor %}"
    )


@pytest.fixture
def serve(view, router):
    """A model with this format's template that writes these calls."""

    def begin(name: str, calls, group: int = 2) -> None:
        view.files = model_files(template(name))
        view.known = [replace(MODEL, max_model_len=4096)]
        router.script = says(write(FORMATS[name], calls), group=group)

    return begin


@pytest.fixture
async def openai(app):
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport) as client:
        yield AsyncOpenAI(api_key="x", base_url="http://gateway/v1", http_client=client)


def tools():
    return [
        {"type": "function", "function": {"name": name, "parameters": schema}}
        for name, schema in TOOLS.items()
    ]


@EACH
def test_a_format_is_found_by_its_template(name):
    assert TextModel.from_files(model_files(template(name))).tool_format.name == name


@EACH
async def test_calls_are_answered_whole_and_streamed_alike(openai, serve, name):
    calls = [CITY] if FORMATS[name].max_calls == 1 else [CITY, ("now", {})]
    serve(name, calls)
    asked = {"model": "tiny", "messages": HI, "tools": tools(), "max_tokens": 2000}
    (choice,) = (await openai.chat.completions.create(**asked)).choices
    found = [(c.function.name, json.loads(c.function.arguments)) for c in choice.message.tool_calls]
    assert (found, choice.message.content, choice.finish_reason) == (calls, None, "tool_calls")
    async with openai.chat.completions.stream(**asked) as stream:
        (last,) = (await stream.get_final_completion()).choices
    streamed = [(c.function.name, c.function.arguments) for c in last.message.tool_calls]
    assert streamed == [(c.function.name, c.function.arguments) for c in choice.message.tool_calls]
    assert last.finish_reason == "tool_calls" and not last.message.content
    assert len({call.id for call in last.message.tool_calls}) == len(calls)


@EACH
async def test_marks_that_are_special_tokens_are_read_as_well(client, serve, view, router, name):
    serve(name, [CITY])
    written = write(FORMATS[name], [CITY])
    marks = sorted({*MARK.findall(written)})
    view.files, ids = with_special_tokens(view.files, marks, written)
    router.script = says(ids)
    body = {"model": "tiny", "messages": HI, "tools": tools(), "max_tokens": 2000}
    (choice,) = (await client.post("/v1/chat/completions", json=body)).json()["choices"]
    ((called, arguments),) = [
        (call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in choice["message"]["tool_calls"]
    ]
    assert (called, arguments) == CITY and choice["message"]["content"] is None


def with_special_tokens(
    files: dict[str, bytes], marks: list[str], text: str
) -> tuple[dict[str, bytes], list[int]]:
    """The files with marks as special tokens, and the text in their ids."""
    own = Tokenizer.from_str(files["tokenizer.json"].decode())
    own.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    ids = own.encode(text, add_special_tokens=False).ids
    return {**files, "tokenizer.json": own.to_str().encode()}, ids


@EACH
async def test_a_history_with_calls_is_rendered(client, serve, router, name):
    serve(name, [("now", {})])
    call = {
        "id": "abcdefghi",
        "type": "function",
        "function": {"name": "now", "arguments": "{}"},
    }
    history = [*HI, {"role": "assistant", "tool_calls": [call]}, *HI]
    body = {"model": "tiny", "messages": history, "tools": tools()}
    response = await client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    written = CALLS[name].partition("{{ c.function.name }}")[0].rpartition("#}")[2]
    prompt = tokenizer().decode(router.request.prompt_token_ids)
    assert f"{written}now" in prompt
