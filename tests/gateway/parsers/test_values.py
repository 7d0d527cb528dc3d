"""Python literals and bare text as JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.parsers.literal import json_of_literal, json_word
from gateway.parsers.values import json_of_text, retyped, types_of

LITERALS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(LITERALS)
def test_any_literal_is_the_json_of_its_value(value):
    written = json_of_literal(repr(value))
    assert written is not None and json.loads(written) == value


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        ("'it\\'s \"q\" \\n \\x41\\u00e9\\U0001F5FC'", 'it\'s "q" \n Aé🗼'),
        ('"""a "b" \'\' \n c"""', "a \"b\" '' \n c"),
        ("''", ""),
        ('""""""', ""),
        ("(1, 'a', (2,))", [1, "a", [2]]),
        ("[1, 2, ]", [1, 2]),
        ("{'a': {}, \"b\": [],}", {"a": {}, "b": []}),
        ("1_000", 1000),
        (".5", 0.5),
        ("2.", 2.0),
        ("+3", 3),
        ("[true, False, null, None]", [True, False, None, None]),
        (r"'\d \q'", r"\d \q"),
        ("'\ud83d'".encode("unicode_escape").decode(), "\ud83d"),
    ],
)
def test_literals_of_all_kinds(literal, value):
    written = json_of_literal(literal)
    assert written is not None and json.loads(written) == value


@pytest.mark.parametrize(
    "text",
    [
        *("", "abc", "1 2", "1, 2", "[1", "{1: 2}", "{'a'}", "'a' 'b'", "f(1)", "007", "1e", "--1"),
        *("[1,,2]", "[,]", "{,}", "'\\x4'", "\\", "'\\UFFFFFFFF'", "[" * 100, "1" * 500 + "x"),
    ],
)
def test_what_is_no_literal_is_none(text):
    assert json_of_literal(text) is None


def test_words_are_numbers_or_constants():
    assert [json_word(word) for word in ("True", "none", "-0", "1e5", "0x1")] == [
        *("true", None, "-0", "1e5", None)
    ]


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("12", {"type": "integer"}, 12),
        (" 12 ", {"type": "number"}, 12),
        ("5.0", {"type": "integer"}, 5),
        ("5.5", {"type": "integer"}, "5.5"),
        ("12", {"type": "string"}, "12"),
        ("true", {"type": "boolean"}, True),
        ("False", {"type": "boolean"}, False),
        ("null", {"type": ["string", "null"]}, None),
        ("nothing", {"type": ["string", "null"]}, "nothing"),
        ("None", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, None),
        ("{'a': [1]}", {"type": "object"}, {"a": [1]}),
        ('{"a": [1]}', {"type": "object"}, {"a": [1]}),
        ("[1, 2]", {"type": "array"}, [1, 2]),
        ("[1, 2", {"type": "array"}, "[1, 2"),
        ("x", {"enum": ["x", "y"]}, "x"),
        ("1", {"enum": [1, 2]}, 1),
        ("1", {"const": "1"}, "1"),
        ('"quoted"', {}, "quoted"),
        ("bare", {}, "bare"),
        ("7", None, 7),
        ("7", {"$ref": "#/$defs/x"}, 7),
        ("true", {"type": "integer"}, "true"),
    ],
)
def test_text_becomes_what_the_schema_wants(text, schema, value):
    found = json.loads(json_of_text(text, schema))
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("written", "schema", "value"),
    [
        ("12", {"type": "string"}, "12"),
        ('"12"', {"type": "integer"}, 12),
        ('"a"', {"type": "integer"}, "a"),
        ('"12"', {}, "12"),
        ("[1]", {"type": "array"}, [1]),
        ("true", {"type": "boolean"}, True),
    ],
)
def test_values_of_another_type_are_retyped(written, schema, value):
    assert json.loads(retyped(written, schema)) == value


def test_schemas_that_say_nothing_of_types_allow_all():
    for schema in (None, True, {}, {"anyOf": [{"type": "string"}, {}]}, {"type": 5}, {"enum": []}):
        assert types_of(schema) == frozenset()
