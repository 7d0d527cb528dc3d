"""Tool calls through the chat route: whole and streamed, by the model's own will and forced."""

import json

import pytest

from tests.gateway.fake_router import FakeView, ids_of, says
from tests.gateway.small_tokenizer import BOS_ID, model_files

PATH = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
ADD = {"type": "function", "function": {"name": "add", "parameters": SCHEMA}}
STOP = {"type": "function", "function": {"name": "stop"}}
CALL = '{"name": "add", "arguments": {"a": 1}}'


async def ask(client, **fields):
    body = {"model": "tiny", "messages": HI, "tools": [ADD, STOP], **fields}
    response = await client.post(PATH, json=body)
    assert response.status_code == 200, response.text
    return response


async def choice_of(client, **fields):
    (choice,) = (await ask(client, **fields)).json()["choices"]
    return choice


async def chunks_of(client, **fields):
    text = (await ask(client, stream=True, **fields)).text
    return [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n")[:-2]]


def joined(chunks):
    """What a client makes of the chunks of one choice: content, calls, the end."""
    content, calls, reason = "", [], None
    for chunk in chunks:
        (choice,) = chunk["choices"]
        assert reason is None, "a chunk behind the end"
        content += choice["delta"].get("content") or ""
        for delta in choice["delta"].get("tool_calls", []):
            if "id" in delta:
                assert delta["index"] == len(calls) and delta["type"] == "function"
                assert delta["function"]["arguments"] == ""
                calls.append([delta["function"]["name"], ""])
            else:
                assert set(delta) == {"index", "function"}
                assert set(delta["function"]) == {"arguments"}
            calls[delta["index"]][1] += delta["function"]["arguments"]
        reason = choice["finish_reason"]
    return content or None, calls, reason


def plain(choice):
    message = choice["message"]
    calls = [[c["function"]["name"], c["function"]["arguments"]] for c in message["tool_calls"]]
    return message["content"], calls, choice["finish_reason"]


async def test_a_call_is_an_object_with_an_id_and_no_content(client, router):
    router.script = says(CALL)
    choice = await choice_of(client)
    (call,) = choice["message"]["tool_calls"]
    assert call.pop("id").startswith("call_")
    assert call == {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "tool_calls"


async def test_an_answer_without_calls_is_content(client, router):
    choice = await choice_of(client)
    assert choice["message"] == {"role": "assistant", "content": "hello world", "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert router.request.sampling.grammar is None


async def test_tools_that_must_not_be_called_are_not_looked_for(client, router):
    router.script = says(CALL)
    choice = await choice_of(client, tool_choice="none")
    assert choice["message"]["content"] == CALL


@pytest.mark.parametrize("group", [1, 2, 100])
@pytest.mark.parametrize("fields", [{}, {"logprobs": True}, {"return_token_ids": True}], ids=str)
async def test_streamed_calls_are_the_whole_ones(client, router, group, fields):
    router.script = says(f"[{CALL}, {CALL}] and so on", group=group)
    whole = await choice_of(client, **fields)
    chunks = await chunks_of(client, **fields)
    assert joined(chunks) == plain(whole)
    assert plain(whole)[0] == "and so on"
    assert [name for name, _ in plain(whole)[1]] == ["add", "add"]
    if "return_token_ids" in fields:
        ids = [id_ for chunk in chunks for id_ in chunk["choices"][0].get("token_ids", [])]
        assert ids == whole["token_ids"]
    if "logprobs" in fields:
        scored = [c["choices"][0]["logprobs"] for c in chunks if c["choices"][0]["logprobs"]]
        assert [t for s in scored for t in s["content"]] == whole["logprobs"]["content"]


async def test_a_call_that_is_cut_off_says_length(client, router):
    router.script = says(CALL)
    num = len(ids_of(CALL)) - 3
    choice = await choice_of(client, max_tokens=num)
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"].startswith("{")
    assert joined(await chunks_of(client, max_tokens=num)) == plain(choice)


async def test_only_the_first_call_is_kept_where_one_is_wanted(client, router):
    router.script = says(f"[{CALL}, {CALL}]")
    choice = await choice_of(client, parallel_tool_calls=False)
    assert len(choice["message"]["tool_calls"]) == 1


async def test_each_choice_has_its_own_calls(client, router):
    router.script = says(CALL)
    choices = (await ask(client, n=3)).json()["choices"]
    ids = {choice["message"]["tool_calls"][0]["id"] for choice in choices}
    assert len(ids) == 3


async def test_a_required_call_is_constrained_and_read(client, router):
    router.script = says(f"[{CALL}]")
    choice = await choice_of(client, tool_choice="required", min_tokens=2)
    assert choice["finish_reason"] == "tool_calls"
    grammar = router.request.sampling.grammar
    assert grammar.kind == "lark"
    assert '\\"add\\"' in grammar.text and '\\"stop\\"' in grammar.text
    assert "{0,15}" in grammar.text
    await ask(client, tool_choice="required", parallel_tool_calls=False)
    assert "{0," not in router.requests[1].sampling.grammar.text


async def test_calls_and_answers_in_a_format_are_told_apart(client, router):
    asked = {"response_format": {"type": "json_object"}, "tool_choice": "auto"}
    router.script = says('{"b": 2}')
    assert (await choice_of(client, **asked))["message"]["content"] == '{"b": 2}'
    router.script = says(f"[{CALL}]")
    assert plain(await choice_of(client, **asked))[1] == [["add", '{"a": 1}']]


async def test_a_named_call_is_the_only_one_that_is_constrained_and_says_stop(client, router):
    router.script = says(f"[{CALL}]")
    named = {"type": "function", "function": {"name": "add"}}
    choice = await choice_of(client, tool_choice=named)
    assert plain(choice) == (None, [["add", '{"a": 1}']], "stop")
    assert joined(await chunks_of(client, tool_choice=named)) == plain(choice)
    grammar = router.requests[0].sampling.grammar
    assert '\\"add\\"' in grammar.text and '\\"stop\\"' not in grammar.text
    assert "{0," not in grammar.text  # no second one


async def test_special_tokens_of_the_models_format_are_read(client, router, view: FakeView):
    template = "{{ '[TOOL_CALLS]' }}{{ messages[0].content }}"
    tokenizer = json.loads(model_files()["tokenizer.json"])
    for token in tokenizer["added_tokens"]:
        if token["id"] == BOS_ID:
            token["content"] = "[TOOL_CALLS]"
    text = json.dumps(tokenizer).replace('"<s>"', '"[TOOL_CALLS]"').encode()
    view.files = {**model_files(template), "tokenizer.json": text}
    router.script = says("add" + '{"a": 1}')
    told = router.script

    def with_mark(request):
        first, *rest = told(request)
        first[0].token_ids.insert(0, BOS_ID)
        return [first, *rest]

    router.script = with_mark
    choice = await choice_of(client)
    assert plain(choice) == (None, [["add", '{"a": 1}']], "tool_calls")
    assert len(choice["message"]["tool_calls"][0]["id"]) == 9
    assert (await choice_of(client, tools=None))["message"]["content"] == 'add{"a": 1}'


HISTORY = [
    {"role": "user", "content": "1 + 2?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "abcdefghi",
                "type": "function",
                "function": {"name": "add", "arguments": '{"a": 1}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "abcdefghi", "content": "3"},
]


@pytest.mark.parametrize(
    "written",
    [
        "call.function.arguments | tojson",
        "'{\"a\": ' ~ call.function.arguments.a ~ '}'",
        "'' + call.function.arguments",
    ],
)
async def test_a_history_with_calls_is_rendered(client, view, router, written):
    template = (
        "{% for m in messages %}{{ m.role + ':' + m.content }}"
        "{% for call in m.tool_calls or [] %}{{ call.function.name }}{{ " + written + " }}"
        "{% endfor %};{% endfor %}"
    )
    view.files = model_files(template)
    await ask(client, messages=HISTORY)
    expected = 'user:1 + 2?;assistant:add{"a": 1};tool:3;'
    assert router.request.prompt_token_ids == ids_of(expected)


async def test_arguments_that_nest_too_deep_to_be_read_are_text(client, view, router):
    view.files = model_files("{{ messages[0].tool_calls[0].function.arguments | length }}")
    call = {"type": "function", "function": {"name": "add", "arguments": "[" * 100_000}}
    await ask(client, messages=[{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert router.request.prompt_token_ids == ids_of("100000")
