"""Forced calls: each format's grammar takes what such a model writes, and whatever it lets through
is read as a call that fits the tool."""

import json
import random

import pytest
from llguidance import LLMatcher, LLTokenizer

from gateway.grammar import grammar_of
from gateway.parsers.events import Content, FoundCall, join_calls
from gateway.parsers.gemma_calls import GemmaSyntax
from gateway.parsers.harmony import HarmonyReader
from gateway.parsers.pythonic_calls import PythonicSyntax
from gateway.parsers.reader import ToolReading
from gateway.parsers.tool_format import ToolFormat
from gateway.schemas.chat import ChatRequest
from gateway.text.mark_tokens import MarkTokens, quote_plain
from gateway.tokens import Grammar
from tests.gateway.parsers.writers import ALL_FORMATS, Call, write

BYTES = LLTokenizer("byte")
NUM_BYTES = 256
PARAMETERS = {
    "type": "object",
    "properties": {
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
        "mode": {"type": "string", "enum": ["fast", 'a "b"']},
        "flags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        "note": {"type": "string", "enum": ["x"]},
        "point": {"$ref": "#/$defs/point"},
    },
    "required": ["n", "mode"],
    "additionalProperties": False,
    "$defs": {
        "point": {
            "type": "object",
            "properties": {"x": {"type": "integer", "enum": [1, 2]}},
            "required": ["x"],
            "additionalProperties": False,
        }
    },
}
TEXT = {
    "type": "object",
    "properties": {"text": {"type": "string"}, "limit": {"type": ["integer", "null"]}},
    "required": ["text"],
}
TOOLS = {"run": PARAMETERS, "say": TEXT, "now": {}}
EACH_FORMAT = pytest.mark.parametrize("tool_format", ALL_FORMATS, ids=lambda one: one.name)


def grammar(tool_format: ToolFormat, tools=TOOLS, marks=None, **fields: object) -> Grammar:
    functions = [{"name": name, "parameters": schema} for name, schema in tools.items()]
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"type": "function", "function": function} for function in functions],
        "tool_choice": "required",
        **fields,
    }
    extra = () if marks is None else (marks,)
    found = grammar_of(ChatRequest.model_validate(body), tool_format, *extra)
    assert found is not None
    return found


def matcher(text: str) -> LLMatcher:
    started = LLMatcher(BYTES, LLMatcher.grammar_from_lark(text), log_level=0)
    assert not started.is_error(), started.get_error()
    return started


def takes(grammar: Grammar, text: str) -> bool:
    reader = matcher(grammar.text)
    return reader.consume_tokens(list(text.encode())) and reader.is_accepting()


def found_calls(tool_format: ToolFormat, text: str) -> tuple[str, list[Call]]:
    reader, channels = ToolReading(tool_format, TOOLS).make_reader(), []
    if tool_format.has_channels:
        harmony = HarmonyReader(TOOLS, is_in_answer=False)
        channels = harmony.feed(text) + harmony.finish()
        text = "".join(event.text for event in channels if isinstance(event, Content))
    content, deltas = reader.feed(text, is_last=True, found=channels)
    calls: list[FoundCall] = []
    join_calls(calls, deltas)
    return content, [(call.name, json.loads(call.arguments)) for call in calls]


def random_text(grammar: Grammar, seed: int) -> str:
    """What a model without any sense would write."""
    choice, reader, written = random.Random(seed), matcher(grammar.text), bytearray()
    for _ in range(2000):
        mask = int.from_bytes(reader.compute_bitmask(), "little")
        allowed = [byte for byte in range(NUM_BYTES) if mask >> byte & 1]
        if not allowed or (reader.is_accepting() and choice.random() < 0.5):
            return written.decode()
        byte = choice.choice(allowed)
        assert reader.consume_token(byte)
        written.append(byte)
    raise AssertionError(f"no end: {written!r}")


def own_text(tool_format: ToolFormat, calls: list[Call]) -> str:
    text = write(tool_format, calls)
    if tool_format.has_channels:  # thoughts come before, the end is a token of its own
        text = text.partition("<|start|>assistant")[2].removesuffix("<|call|>")
    return text


@EACH_FORMAT
def test_a_forced_call_may_be_written_as_the_model_does(tool_format):
    run = ("run", {"n": 7, "mode": 'a "b"', "flags": [True], "point": {"x": 2}})
    if isinstance(tool_format.syntax, PythonicSyntax):  # other quotes, True
        run = ("run", {"n": 7, "mode": "fast", "flags": [], "point": {"x": 2}})
    if isinstance(tool_format.syntax, GemmaSyntax):  # other keys inside of values
        run = ("run", {"n": 7, "mode": 'a "b"', "flags": [True]})
    texts = [run], [("now", {})], [("say", {"text": "plain", "limit": 3})]
    for calls in texts:
        text = own_text(tool_format, calls).replace("'", '"')
        assert takes(grammar(tool_format), text), text


@EACH_FORMAT
def test_whatever_the_grammar_lets_through_is_a_call_that_fits(tool_format):
    constraint = grammar(tool_format, {"run": PARAMETERS, "now": {}})
    for seed in range(12):
        text = random_text(constraint, seed)
        content, calls = found_calls(tool_format, text)
        assert (content, bool(calls)) == ("", True), text
        for name, arguments in calls:
            if name == "now":
                assert arguments == {}
                continue
            assert set(arguments) <= set(PARAMETERS["properties"]) and 0 <= arguments["n"] <= 99
            assert arguments["mode"] in ("fast", 'a "b"')
            assert all(type(flag) is bool for flag in arguments.get("flags", []))
            assert arguments.get("point", {"x": 1})["x"] in (1, 2)


@EACH_FORMAT
def test_text_arguments_come_through_with_whatever_is_in_them(tool_format):
    constraint = grammar(tool_format, {"say": TEXT})
    reader = matcher(constraint.text)
    assert not reader.is_error()
    text = own_text(tool_format, [("say", {"text": "a <b> } é"})])
    if "'" in text:  # Python's own quotes; the grammar writes JSON's
        text = text.replace("'", '"')
    assert takes(constraint, text)
    assert found_calls(tool_format, text) == ("", [("say", {"text": "a <b> } é"})])


@EACH_FORMAT
def test_one_call_is_all_where_one_is_wanted(tool_format):
    one = grammar(tool_format, {"run": PARAMETERS}, parallel_tool_calls=False)
    named = {"type": "function", "function": {"name": "now"}}
    for seed in range(4):
        assert len(found_calls(tool_format, random_text(one, seed))[1]) == 1
        only = grammar(tool_format, tool_choice=named)
        assert found_calls(tool_format, random_text(only, seed)) == ("", [("now", {})])


def test_marks_that_are_tokens_are_named_by_their_ids():
    (hermes,) = (one for one in ALL_FORMATS if one.name == "hermes")
    marks = MarkTokens({7: "<tool_call>", 8: "</tool_call>", 9: "\n"})
    constraint = grammar(hermes, marks=marks)
    assert "<[7]>" in constraint.text and "<tool_call>" not in constraint.text
    assert constraint.trial is not None and "<[7]>" not in constraint.trial
    assert marks.quote("a<tool_call>\n") == '"a" <[7]> "\\n"'
    assert quote_plain("a<tool_call>") == '"a<tool_call>"'
    assert marks.ids_in(["x<tool_call>\n<function="]) == {7}


def test_strict_tools_are_held_to_their_schema_wherever_a_call_begins():
    (hermes,) = (one for one in ALL_FORMATS if one.name == "hermes")
    begin, end = 250, 251  # two bytes that stand for the marks
    marks = MarkTokens({begin: "<tool_call>", end: "</tool_call>"})
    function = {"name": "run", "parameters": PARAMETERS, "strict": True}
    tools = [{"type": "function", "function": function}]
    body = {"messages": [{"role": "user", "content": "hi"}], "tools": tools}
    strict = grammar_of(ChatRequest.model_validate(body), hermes, marks)
    assert strict is not None

    def takes_bytes(*pieces: str | int) -> bool:
        ids = [
            id_
            for piece in pieces
            for id_ in ([piece] if isinstance(piece, int) else piece.encode())
        ]
        reader = matcher(strict.text)
        return reader.try_consume_tokens(ids) == len(ids) and reader.is_accepting()

    good = '\n{"name": "run", "arguments": {"n": 7, "mode": "fast"}}\n'
    assert takes_bytes("no call {") and takes_bytes("one: ", begin, good, end, " and text")
    assert not takes_bytes(begin, good.replace("7", "700"), end)
    assert not takes_bytes("one: ", begin, "x")
    assert strict.trial is not None and not matcher(strict.trial).is_error()
    del function["strict"]
    assert grammar_of(ChatRequest.model_validate(body), hermes, marks) is None
