"""However an answer is cut, its calls are the same; what is no call stays text, nothing raises."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.parsers.events import FoundCall, join_calls
from gateway.parsers.generic import GENERIC
from gateway.parsers.hermes import HERMES
from gateway.parsers.llama import LLAMA
from gateway.parsers.mistral import MISTRAL
from gateway.parsers.reader import ToolReading
from gateway.parsers.text_parser import ToolFormat
from tests.gateway.parsers.recordings import CITY, NAMES, ONE, RECORDINGS

FORMATS = [HERMES, LLAMA, MISTRAL, GENERIC]
PIECES = st.sampled_from(
    [
        *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>"),
        *('{"name": "add"', ', "arguments": ', '{"a": 1}', "1e5", "add"),
        *("}", "{", "[", "]", '"', "\\", " ", "\n", ";"),
    ]
)


def read(
    tool_format: ToolFormat, pieces: list[str], forced: str | None = None
) -> tuple[str, list[tuple[str, str]]]:
    reader = ToolReading(tool_format, NAMES, forced).make_reader()
    content, calls = "", list[FoundCall]()
    for text, is_last in [*((piece, False) for piece in pieces), ("", True)]:
        shown, deltas = reader.feed(text, is_last=is_last)
        content += shown
        join_calls(calls, deltas)
    return content, [(call.name, call.arguments) for call in calls]


def cut(text: str, places: list[int]) -> list[str]:
    bounds = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[i:j] for i, j in pairwise(bounds)]


@pytest.mark.parametrize(("tool_format", "text", "content", "calls"), RECORDINGS)
def test_every_cut_of_a_recording_reads_the_same(tool_format, text, content, calls):
    assert read(tool_format, [text]) == (content, calls)
    assert read(tool_format, list(text)) == (content, calls)
    for place in range(len(text)):
        assert read(tool_format, [text[:place], text[place:]]) == (content, calls)


@given(st.sampled_from(RECORDINGS), st.lists(st.integers(0, 1000), max_size=12))
def test_many_cuts_of_a_recording_read_the_same(recording, places):
    tool_format, text, content, calls = recording
    assert read(tool_format, cut(text, places)) == (content, calls)


@given(st.sampled_from(FORMATS), st.lists(PIECES | st.text(max_size=3), max_size=14), st.data())
def test_any_text_reads_the_same_in_pieces_and_never_raises(tool_format, pieces, data):
    text = "".join(pieces)
    places = data.draw(st.lists(st.integers(0, 1000), max_size=6))
    content, calls = whole = read(tool_format, [text])
    assert read(tool_format, cut(text, places)) == whole
    assert all(name in NAMES for name, _ in calls)
    if not calls:
        assert content == text


@given(st.dictionaries(st.text(), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8,
)))  # fmt: skip
def test_arguments_of_any_kind_come_out_as_they_were_written(arguments):
    text = json.dumps({"name": "add", "arguments": arguments})
    _, [(name, found)] = read(HERMES, list(f"<tool_call>{text}</tool_call>"))
    assert (name, json.loads(found)) == ("add", arguments)


def test_calls_go_out_while_they_are_written():
    reader = ToolReading(HERMES, NAMES).make_reader()
    _, nothing = reader.feed('<tool_call>{"name": "add", "argu', is_last=False)
    _, begun = reader.feed('ments": {"a"', is_last=False)
    _, more = reader.feed(": 1", is_last=False)
    assert nothing == []
    assert [(d.index, d.name, d.arguments) for d in begun] == [(0, "add", ""), (0, None, '{"a"')]
    assert begun[0].id is not None and begun[1].id is None
    assert [(d.index, d.id, d.arguments) for d in more] == [(0, None, ": 1")]


def test_only_the_first_call_is_kept_where_one_is_wanted():
    reader = ToolReading(GENERIC, NAMES, takes_many=False).make_reader()
    text = f'[{{"name": "add", "arguments": {ONE[1]}}}, {{"name": "add"}}]'
    _, deltas = reader.feed(text, is_last=True)
    calls: list[FoundCall] = []
    join_calls(calls, deltas)
    assert [(call.name, call.arguments) for call in calls] == [ONE]


def test_a_forced_call_is_all_of_the_text():
    assert read(GENERIC, ['{"a"', ": 1}"], forced="add") == ("", [("add", '{"a": 1}')])
    assert read(GENERIC, [""], forced="add") == ("", [])


def test_mistral_ids_are_what_its_templates_take():
    reader = ToolReading(MISTRAL, NAMES).make_reader()
    _, deltas = reader.feed(f"[TOOL_CALLS]get_weather{CITY[1]}", is_last=True)
    assert deltas[0].id is not None and len(deltas[0].id) == 9 and deltas[0].id.isalnum()
