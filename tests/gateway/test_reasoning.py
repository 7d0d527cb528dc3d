"""Thoughts through the chat route: told apart, counted, limited, hidden, and part of histories."""

import json
from dataclasses import replace

import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer

from tests.gateway.fake_router import MODEL, FakeView, says
from tests.gateway.small_tokenizer import EOS_ID, byte_level_json, model_files

PATH = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
OPEN = (
    "{% for m in messages %}{{ m.role }}:{% if m.reasoning_content %}<think>"
    "{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}\n{% endfor %}assistant:"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    "{{ reasoning_effort or '' }}"
)
BEGUN = OPEN + "<think>\n"
HARMONY = (
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}"
    "{{ '' if not reasoning_effort else reasoning_effort }}<|start|>assistant{# <|channel|> #}"
)
ADD = {"type": "function", "function": {"name": "add", "parameters": {
    "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}}  # fmt: skip


def files_with_marks(template: str, *marks: str, is_special: bool = False) -> dict[str, bytes]:
    tokenizer = Tokenizer.from_str(byte_level_json().decode())
    tokenizer.add_tokens([AddedToken(mark, special=is_special) for mark in marks])
    return {**model_files(template), "tokenizer.json": tokenizer.to_str().encode()}


def thinks_and_says(files: dict[str, bytes], text: str, group: int = 1):
    """A script in the ids of the model's own tokenizer."""
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    return says(tokenizer.encode(text, add_special_tokens=False).ids, group=group)


def serve(view: FakeView, files: dict[str, bytes]) -> None:
    """As a model of its own: text sides are kept by digest."""
    view.files = files
    view.known = [replace(MODEL, digest=str(len(view.known[0].digest)) + view.known[0].digest,
                          max_model_len=4096)]  # fmt: skip


async def ask(client, **fields):
    response = await client.post(PATH, json={"model": "tiny", "messages": HI, **fields})
    assert response.status_code == 200, response.text
    return response


async def whole(client, **fields):
    return (await ask(client, **fields)).json()


async def chunks_of(client, **fields):
    text = (await ask(client, stream=True, **fields)).text
    return [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n")[:-2]]


def joined(chunks):
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    for delta in deltas:
        assert delta.get("reasoning") == delta.get("reasoning_content")
    thoughts = "".join(delta.get("reasoning") or "" for delta in deltas)
    return thoughts, "".join(delta.get("content") or "" for delta in deltas)


@pytest.mark.parametrize("group", [1, 3, 100])
@pytest.mark.parametrize("logprobs", [False, True])
async def test_thoughts_have_fields_of_their_own(client, router, view, group, logprobs):
    serve(view, model_files(OPEN))
    router.script = says("<think>\nHm, so.\n</think>\n\nYes.", group=group)
    answer = await whole(client, logprobs=logprobs)
    message = answer["choices"][0]["message"]
    assert message["reasoning"] == message["reasoning_content"] == "Hm, so."
    assert message["content"] == "Yes."
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
    chunks = await chunks_of(client, logprobs=logprobs)
    assert joined(chunks) == ("Hm, so.", "Yes.")


async def test_thoughts_that_the_template_began_need_no_mark(client, router, view):
    serve(view, model_files(BEGUN))
    router.script = says("Hm.\n</think>\n\nYes.")
    message = (await whole(client))["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("Hm.", "Yes.")


async def test_where_thinking_is_switched_off_all_is_content(client, router, view):
    serve(view, model_files(OPEN))
    router.script = says("Yes.")
    for fields in (
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"reasoning_effort": "none"},
    ):
        answer = await whole(client, **fields)
        assert answer["choices"][0]["message"]["content"] == "Yes."
        assert "reasoning" not in answer["choices"][0]["message"]
        assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}
    first, second = router.requests
    assert first.prompt_token_ids == second.prompt_token_ids


async def test_an_effort_is_told_to_the_template(client, router, view):
    serve(view, model_files(OPEN))
    await ask(client, reasoning_effort="high")
    await ask(client)
    with_effort, without = (len(one.prompt_token_ids) for one in router.requests)
    assert with_effort > without
    response = await client.post(
        PATH, json={"model": "tiny", "messages": HI, "reasoning_effort": "very"}
    )
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "reasoning_effort"


async def test_thoughts_cut_off_by_the_limit_are_all_there_is(client, router, view):
    serve(view, model_files(BEGUN))
    router.script = says("Hm, and so on and so on")
    choice = (await whole(client, max_tokens=4))["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] is None and choice["message"]["reasoning"]


async def test_unwanted_thoughts_are_hidden_with_their_tokens(client, router, view):
    serve(view, model_files(BEGUN))
    router.script = says("Hm.\n</think>\n\nYes.")
    fields = {"include_reasoning": False, "logprobs": True, "return_token_ids": True}
    answer = await whole(client, **fields)
    choice = answer["choices"][0]
    assert "reasoning" not in choice["message"] and choice["message"]["content"] == "Yes."
    assert answer["usage"]["completion_tokens"] > len(choice["token_ids"])
    assert len(choice["logprobs"]["content"]) == len(choice["token_ids"])
    assert "Hm" not in "".join(one["token"] for one in choice["logprobs"]["content"])
    assert joined(await chunks_of(client, **fields)) == ("", "Yes.")


async def test_stop_strings_do_not_cut_thoughts(client, router, view):
    serve(view, model_files(BEGUN))
    router.script = says("one. two. three</think>four. five.", ends=False)
    choice = (await whole(client, stop=[". "]))["choices"][0]
    assert choice["message"]["reasoning"] == "one. two. three"
    assert choice["message"]["content"] == "four"
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", ". ")


async def test_a_call_comes_behind_thoughts(client, router, view):
    serve(view, model_files(BEGUN + "{# <tool_call> #}"))
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    router.script = says(f'Is it <tool> {{"name": "add"}}?\n</think>\n\n{call}')
    choice = (await whole(client, tools=[ADD]))["choices"][0]
    assert choice["message"]["reasoning"] == 'Is it <tool> {"name": "add"}?'
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "tool_calls"
    chunks = await chunks_of(client, tools=[ADD])
    assert joined(chunks) == ('Is it <tool> {"name": "add"}?', "")
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("group", [1, 4])
async def test_harmony_through_the_route(client, router, view: FakeView, group):
    marks = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|constrain|>")
    serve(view, files_with_marks(HARMONY, *marks, is_special=True))
    call = '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}<|call|>'
    text = f"<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant{call}"
    router.script = thinks_and_says(view.files, text, group)
    choice = (await whole(client, tools=[ADD]))["choices"][0]
    message = choice["message"]
    assert (message["content"], message["reasoning"]) == (None, "Hm.")
    assert message["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1}'}
    assert choice["finish_reason"] == "tool_calls"
    assert joined(await chunks_of(client, tools=[ADD])) == ("Hm.", "")
    router.script = thinks_and_says(
        view.files,
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes",
        group,
    )
    assert joined(await chunks_of(client)) == ("Hm.", "Yes")
    response = await client.post(
        PATH, json={"model": "tiny", "messages": HI, "reasoning_effort": "none"}
    )
    assert response.status_code == 400 and "low, medium, high" in response.text


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
async def test_thoughts_of_a_history_reach_the_template(client, router, view, name):
    serve(view, model_files(OPEN))
    history = [*HI, {"role": "assistant", "content": "Yes", name: "Hm"}, *HI]
    await ask(client, messages=history)
    tokenizer = Tokenizer.from_str(byte_level_json().decode())
    assert "<think>Hm</think>Yes" in tokenizer.decode(router.request.prompt_token_ids)


class Marked:
    """A model whose marks are tokens, and what its grammars let through."""

    files = files_with_marks(OPEN, "<think>", "</think>")
    begun = files_with_marks(BEGUN, "<think>", "</think>")
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    guide = LLTokenizer(tokenizer.to_str(), eos_token=[EOS_ID])

    @classmethod
    def takes(cls, grammar, text: str) -> bool:
        matcher = LLMatcher(cls.guide, LLMatcher.grammar_from_lark(grammar.text), log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        ids = cls.tokenizer.encode(text, add_special_tokens=False).ids
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


async def grammar_for(client, router, **fields):
    await ask(client, **fields)
    return router.requests[-1].sampling.grammar


async def test_a_grammar_begins_behind_the_thoughts(client, router, view):
    wanted = {"response_format": {"type": "json_object"}}
    serve(view, Marked.begun)
    grammar = await grammar_for(client, router, **wanted)
    assert Marked.takes(grammar, 'Hm {x</think>\n\n{"a": 1}')
    assert not Marked.takes(grammar, '{"a": 1}') and not Marked.takes(grammar, "Hm</think>no")
    serve(view, Marked.files)
    grammar = await grammar_for(client, router, **wanted)
    assert Marked.takes(grammar, '<think>Hm</think>{"a": 1}') and Marked.takes(grammar, '{"a": 1}')
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    grammar = await grammar_for(client, router, **wanted, **off)
    assert grammar.kind == "json_schema"
    grammar = await grammar_for(client, router, tools=[ADD], tool_choice="required")
    call = '[{"name": "add", "arguments": {"a": 1}}]'
    assert Marked.takes(grammar, f"<think>Hm</think>{call}") and Marked.takes(grammar, call)
    grammar = await grammar_for(client, router, structured_outputs={"regex": "a/b\\n?"})
    assert Marked.takes(grammar, "<think>Hm</think>a/b")
    grammar = await grammar_for(client, router, structured_outputs={"choice": ["x", "y"]})
    assert Marked.takes(grammar, "<think>Hm</think>y")


@pytest.mark.parametrize("name", ["thinking_token_budget", "max_thinking_tokens"])
async def test_a_budget_of_thoughts_is_kept_to_the_token(client, router, view, name):
    serve(view, Marked.begun)
    grammar = await grammar_for(client, router, **{name: 3})
    assert Marked.takes(grammar, "aaa</think>Yes <b> and so on")
    assert not Marked.takes(grammar, "abab</think>Yes")
    assert Marked.takes(await grammar_for(client, router, **{name: 0}), "</think>Yes")
    assert await grammar_for(client, router, **{name: -1}) is None
    both = await grammar_for(client, router, **{name: 2}, response_format={"type": "json_object"})
    assert Marked.takes(both, "aa</think>{}") and not Marked.takes(both, "aab</think>{}")


async def test_a_budget_that_cannot_be_kept_is_refused(client, router, view):
    for files in (model_files(), model_files(BEGUN)):  # thinks not at all; its marks are no tokens
        serve(view, files)
        body = {"model": "tiny", "messages": HI, "thinking_token_budget": 5}
        response = await client.post(PATH, json=body)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "thinking_token_budget"
    body = {"model": "tiny", "prompt": "x", "thinking_token_budget": 5}
    assert (await client.post("/v1/completions", json=body)).status_code == 400
