"""However an answer is cut, its calls are the same; what is no call stays text, nothing raises."""

import json
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.parsers.events import Content, FoundCall, ParserEvent, join_calls
from gateway.parsers.formats import GENERIC, HERMES, MISTRAL
from gateway.parsers.harmony import HarmonyReader
from gateway.parsers.reader import ToolReading
from gateway.parsers.tool_format import ToolFormat
from tests.gateway.parsers.recordings import CITY, ONE, RECORDINGS
from tests.gateway.parsers.writers import ALL_FORMATS, TOOLS, recordings

PIECES = (
    *('{"name": "add"', ', "arguments": ', '{"a": 1}', "1e5", "add", "now", "get_weather"),
    *("}", "{", "[", "]", "(", ")", "=", ",", '"', "'", "\\", " ", "\n", ";", "`", ">", "<"),
    *("a=1", "city='x'", "functions.", '" string="true">', '">', "city", "<arg_value>", "json"),
    *("<parameter=", "</parameter>", '<parameter name="', "</function>", "</invoke>", "<arg_key>"),
    *("</arg_key>", "</arg_value>", "```json\n", "[ARGS]", "<｜tool▁sep｜>"),
    "<|tool_call_argument_begin|>",
)


def read(tool_format: ToolFormat, pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    reader = ToolReading(tool_format, TOOLS).make_reader()
    channels = HarmonyReader(TOOLS, is_in_answer=False) if tool_format.has_channels else None
    content, calls = "", list[FoundCall]()
    for text, is_last in [*((piece, False) for piece in pieces), ("", True)]:
        found: list[ParserEvent] = []
        if channels is not None:
            found = channels.feed(text) + (channels.finish() if is_last else [])
            text = "".join(event.text for event in found if isinstance(event, Content))
        shown, deltas = reader.feed(text, is_last=is_last, found=found)
        content += shown
        join_calls(calls, deltas)
    return content, [(call.name, call.arguments) for call in calls]


def cut(text: str, places: list[int]) -> list[str]:
    bounds = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[i:j] for i, j in pairwise(bounds)]


@pytest.mark.parametrize("tool_format", ALL_FORMATS, ids=lambda one: one.name)
def test_every_cut_of_fifty_answers_reads_the_same(tool_format):
    for recording in recordings(tool_format, 50):
        text = recording.text
        whole = read(tool_format, [text])
        assert read(tool_format, list(text)) == whole
        for place in range(1, len(text)):
            assert read(tool_format, [text[:place], text[place:]]) == whole, text[:place]
        for seed in range(3):
            places = random.Random(seed).choices(range(len(text) + 1), k=6)
            assert read(tool_format, cut(text, places)) == whole


@pytest.mark.parametrize("tool_format", ALL_FORMATS, ids=lambda one: one.name)
def test_calls_are_found_with_the_arguments_that_were_written(tool_format):
    for recording in recordings(tool_format, 100):
        content, calls = read(tool_format, [recording.text])
        if recording.calls is not None:
            found = [(name, json.loads(arguments)) for name, arguments in calls]
            assert found == list(recording.calls), recording.text
            assert content == recording.content, recording.text


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


@given(st.data(), st.sampled_from(ALL_FORMATS))
def test_any_text_reads_the_same_in_pieces_and_nothing_is_lost(data, tool_format):
    pieces = st.sampled_from([*tool_format.all_marks, *PIECES]) | st.text(max_size=3)
    text = "".join(data.draw(st.lists(pieces, max_size=14)))
    places = data.draw(st.lists(st.integers(0, 1000), max_size=6))
    content, calls = whole = read(tool_format, [text])
    assert read(tool_format, cut(text, places)) == whole
    assert all(name in TOOLS for name, _ in calls)
    if not calls and not tool_format.has_channels:
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
    reader = ToolReading(HERMES, TOOLS).make_reader()
    _, nothing = reader.feed('<tool_call>{"name": "add", "argu', is_last=False)
    _, begun = reader.feed('ments": {"a"', is_last=False)
    _, more = reader.feed(": 1", is_last=False)
    assert nothing == []
    assert [(d.index, d.name, d.arguments) for d in begun] == [(0, "add", ""), (0, None, '{"a"')]
    assert begun[0].id is not None and begun[1].id is None
    assert [(d.index, d.id, d.arguments) for d in more] == [(0, None, ": 1")]


def test_only_the_first_call_is_kept_where_one_is_wanted():
    reader = ToolReading(GENERIC, TOOLS, takes_many=False).make_reader()
    text = f'[{{"name": "add", "arguments": {ONE[1]}}}, {{"name": "add"}}]'
    _, deltas = reader.feed(text, is_last=True)
    calls: list[FoundCall] = []
    join_calls(calls, deltas)
    assert [(call.name, call.arguments) for call in calls] == [ONE]


def test_mistral_ids_are_what_its_templates_take():
    reader = ToolReading(MISTRAL, TOOLS).make_reader()
    _, deltas = reader.feed(f"[TOOL_CALLS]get_weather{CITY[1]}", is_last=True)
    assert deltas[0].id is not None and len(deltas[0].id) == 9 and deltas[0].id.isalnum()
