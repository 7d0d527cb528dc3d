"""Constraints become grammars that mean what was asked, and what cannot be meant is refused."""

import json

import pytest
from llguidance import LLMatcher, LLTokenizer

from gateway.grammar import grammar_of
from gateway.parsers.formats import GENERIC, HERMES, LLAMA
from gateway.parsers.tool_format import ToolFormat
from gateway.schemas.chat import ChatRequest
from gateway.schemas.completion import CompletionRequest
from gateway.tokens import Grammar
from tests.gateway.small_tokenizer import byte_level_json

TOKENIZER = LLTokenizer(byte_level_json().decode())
POINT_TEXT = '{"x": 5}'
POINT = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}


def takes(grammar: Grammar | None, text: str) -> bool:
    assert grammar is not None
    source = {
        "json_schema": LLMatcher.grammar_from_json_schema,
        "regex": LLMatcher.grammar_from_regex,
        "lark": LLMatcher.grammar_from_lark,
    }[grammar.kind](grammar.text)
    matcher = LLMatcher(TOKENIZER, source, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    ids = TOKENIZER.tokenize_str(text)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def chat(tool_format: ToolFormat = GENERIC, **fields: object) -> Grammar | None:
    messages = [{"role": "user", "content": "hi"}]
    body = ChatRequest.model_validate({"model": "tiny", "messages": messages, **fields})
    body.check_rules()
    return grammar_of(body, tool_format)


def text(**constraint: object) -> Grammar | None:
    body = {"model": "tiny", "prompt": "hi", "structured_outputs": constraint}
    return grammar_of(CompletionRequest.model_validate(body), GENERIC)


def tool(name: str, parameters: object = None, **fields: object) -> dict[str, object]:
    function = {"name": name, "parameters": parameters, **fields}
    return {"type": "function", "function": function}


def test_nothing_asked_is_no_grammar():
    assert chat() is None
    assert chat(response_format={"type": "text"}) is None
    assert chat(tools=[tool("a")]) is None
    assert chat(tools=[tool("a")], tool_choice="none") is None


def test_json_mode_takes_any_object_and_only_objects():
    grammar = chat(response_format={"type": "json_object"})
    assert takes(grammar, '{"a": [1, {"b": null}]}')
    assert not takes(grammar, "[1]")
    assert not takes(grammar, '{"a":    1}')  # no endless space


def test_a_schema_is_held():
    grammar = chat(response_format={"type": "json_schema", "json_schema": {"schema": POINT}})
    assert takes(grammar, '{"x": 5}')
    assert not takes(grammar, '{"x": "5"}')
    assert takes(text(json=POINT), '{"x": 5}')
    assert takes(text(json=json.dumps(POINT)), '{"x": 5}')


def test_regex_and_choice_are_held():
    assert takes(text(regex="[ab]{2}"), "ab") and not takes(text(regex="[ab]{2}"), "abc")
    choice = text(choice=['say "hi"', "héé", "a\nb"])
    assert takes(choice, 'say "hi"') and takes(choice, "héé") and takes(choice, "a\nb")
    assert not takes(choice, "say")


def test_required_calls_are_a_list_of_the_tools_calls():
    ref = {
        "type": "object",
        "properties": {"p": {"$ref": "#/$defs/P"}},
        "required": ["p"],
        "$defs": {"P": {"enum": ["é", "f"]}},
    }
    tools = [tool("add", POINT), tool("go", ref), tool("now")]
    grammar = chat(tools=tools, tool_choice="required")
    add, go = '{"name": "add", "arguments": {"x": 5}}', '{"name": "go", "arguments": {"p": "é"}}'
    now = '{"name": "now", "arguments": {}}'
    assert all(takes(grammar, f"[{call}]") for call in (add, go, now))
    assert takes(grammar, f"[{add}, {go}, {now}]")
    for wrong in ("[]", add, add.replace("5", '"5"'), f"[{now.replace('{}', POINT_TEXT)}]"):
        assert not takes(grammar, wrong)
    one = chat(tools=tools, tool_choice="required", parallel_tool_calls=False)
    assert takes(one, f"[{add}]") and not takes(one, f"[{add}, {add}]")


def test_required_calls_are_tagged_where_the_model_tags_them():
    tools = [tool("add", POINT)]
    call = f'<tool_call>\n{{"name": "add", "arguments": {POINT_TEXT}}}\n</tool_call>'
    grammar = chat(HERMES, tools=tools, tool_choice="required")
    assert takes(grammar, call) and takes(grammar, f"{call}\n{call}")
    assert not takes(grammar, call[:-1]) and not takes(grammar, call[12:-13])


@pytest.mark.parametrize("tool_format", [GENERIC, HERMES, LLAMA])
def test_a_format_beside_tools_leaves_the_choice_to_the_model(tool_format):
    wanted = {"type": "json_schema", "json_schema": {"schema": {"enum": [1, 2]}}}
    grammar = chat(tool_format, tools=[tool("add", POINT)], response_format=wanted)
    call = f'{{"name": "add", "arguments": {POINT_TEXT}}}'
    written = {
        "json": f"[{call}]",
        "hermes": f"<tool_call>\n{call}\n</tool_call>",
        "llama3_json": call.replace("arguments", "parameters"),
    }
    assert takes(grammar, written[tool_format.name])
    assert takes(grammar, "2") and not takes(grammar, "3")


def test_a_named_call_is_the_only_one():
    named = {"type": "function", "function": {"name": "add"}}
    grammar = chat(tools=[tool("now"), tool("add", POINT)], tool_choice=named)
    call = f'{{"name": "add", "arguments": {POINT_TEXT}}}'
    assert takes(grammar, f"[{call}]") and not takes(grammar, f"[{call}, {call}]")
    assert not takes(grammar, '[{"name": "now", "arguments": {}}]')
    # described properties only
    assert not takes(grammar, '[{"name": "add", "arguments": {"x": 5, "y": 1}}]')


def test_keywords_that_cannot_be_held_are_passed_over_unless_the_tool_is_strict():
    parameters = {**POINT, "not": {"required": ["z"]}}
    named = {"type": "function", "function": {"name": "add"}}
    call = f'[{{"name": "add", "arguments": {POINT_TEXT}}}]'
    assert takes(chat(tools=[tool("add", parameters)], tool_choice=named), call)
    strict = chat(tools=[tool("add", parameters, strict=True)], tool_choice=named)
    assert strict is not None
    assert [part.param for part in strict.parts] == ["tools[0].function.parameters"]
    source = LLMatcher.grammar_from_json_schema(strict.parts[0].text)
    assert LLMatcher.validate_grammar(source) != ""


def test_a_forced_call_goes_before_the_format():
    grammar = chat(
        tools=[tool("add", POINT)],
        tool_choice="required",
        response_format={"type": "json_object"},
    )
    assert grammar is not None and grammar.kind == "lark"


def test_the_clients_own_compiler_options_are_dropped():
    loose = {**POINT, "x-guidance": {"whitespace_flexible": True, "lenient": True}}
    for grammar in (
        text(json=loose),
        chat(tools=[tool("a", loose)], tool_choice="required"),
        chat(tools=[tool("a", loose, strict=True)], tool_choice="required"),
    ):
        assert grammar is not None and '"whitespace_flexible": true' not in grammar.text
