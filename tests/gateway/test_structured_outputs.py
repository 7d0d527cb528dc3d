"""Constraints become grammars that mean what was asked, and what cannot be meant is refused."""

import json

import pytest

from gateway.errors import InvalidRequestError
from gateway.grammar_text import options_line
from gateway.schemas.completion import CompletionRequest
from gateway.structured_outputs import answer_grammar
from gateway.tokens import Grammar
from protos.grammar_source import UNFORCED
from tests.gateway.languages import problem, takes

POINT = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}


def asked(**fields: object) -> Grammar | None:
    body = CompletionRequest.model_validate({"model": "tiny", "prompt": "hi", **fields})
    body.check_rules()
    return answer_grammar(body)


def outputs(**constraint: object) -> Grammar:
    grammar = asked(structured_outputs=constraint)
    assert grammar is not None
    return grammar


def refusal(**fields: object) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as refused:
        asked(**fields)
    return refused.value


def test_nothing_asked_is_no_grammar():
    assert asked() is None
    assert asked(response_format={"type": "text"}) is None


def test_json_mode_takes_any_object_and_only_objects():
    for grammar in (asked(response_format={"type": "json_object"}), outputs(json_object=True)):
        assert takes(grammar, '{"a": [1, {"b": null}]}')
        assert not takes(grammar, "[1]")
        assert not takes(grammar, '{"a":    1}')  # no endless space


def test_a_schema_is_held():
    wanted = {"type": "json_schema", "json_schema": {"schema": POINT}}
    for grammar in (
        asked(response_format=wanted),
        outputs(json=POINT),
        outputs(json=json.dumps(POINT)),
        asked(guided_json=POINT),
    ):
        assert takes(grammar, '{"x": 5}') and takes(grammar, '{"x": 5, "y": 1}')
        assert not takes(grammar, '{"x": "5"}')


def test_json_is_written_as_asked():
    compact = outputs(json=POINT, disable_any_whitespace=True)
    assert takes(compact, '{"x":5}') and not takes(compact, '{"x": 5}')
    spaced = outputs(json=POINT, whitespace_pattern="[ \n]{0,2}")
    assert takes(spaced, '{\n "x": 5}') and takes(spaced, '{"x":5}')
    assert not takes(spaced, '{   "x": 5}')
    assert takes(asked(guided_json=POINT, guided_whitespace_pattern="\t?"), '{"x":\t5}')


def test_objects_are_closed_where_asked():
    inner = {"type": "object", "properties": {"p": POINT}, "required": ["p"]}
    closed = outputs(json=inner, disable_additional_properties=True)
    assert takes(closed, '{"p": {"x": 1}}')
    assert not takes(closed, '{"p": {"x": 1, "y": 2}}') and not takes(
        closed, '{"p": {"x": 1}, "q": 1}'
    )


def test_regex_and_choice_are_held():
    for grammar in (outputs(regex="[ab]{2}"), asked(guided_regex="[ab]{2}")):
        assert takes(grammar, "ab") and not takes(grammar, "abc")
    words = ['say "hi"', "héé", "a\nb", "a", "ab"]
    for grammar in (outputs(choice=words), asked(guided_choice=words)):
        assert all(takes(grammar, word) for word in words)
        assert not takes(grammar, "say") and not takes(grammar, "")


def test_thousands_of_choices_are_no_trouble():
    grammar = outputs(choice=[f"choice {i}" for i in range(4096)])
    assert takes(grammar, "choice 4095") and not takes(grammar, "choice 5000")


@pytest.mark.parametrize(
    ("text", "good", "bad"),
    [
        ('start: "SELECT " NAME ("," NAME)*\nNAME: /[a-z]+/', "SELECT a,bc", "SELECT a,"),
        ("%llguidance {}\nstart: expr\nexpr: /[0-9]/ | \"(\" expr \")\"", "((7))", "((7)"),
        ('root ::= "a" list\nlist ::= [0-9]+ | "(" list ")" # nested\n', "a((12))", "a()"),
        ('root ::= "\\u0041\\u00e9" [^"\\\\]', "Aéx", 'Aé"'),
        ('root ::= ("x" | "y"){2,3}', "xyx", "x"),
        ('start: "a ::= b"', "a ::= b", "a"),
    ],
    ids=["lark", "recursive", "ebnf", "escapes", "repeated", "literal"],
)  # fmt: skip
def test_grammars_are_lark_or_ebnf(text: str, good: str, bad: str):
    for grammar in (outputs(grammar=text), asked(guided_grammar=text)):
        assert takes(grammar, good) and not takes(grammar, bad)


def test_a_clients_grammar_cannot_be_one_whose_masks_never_come():
    for text in (
        "start: /a+/ /a+/ start?",
        "start: inner\ninner: %lark {\nstart: /a+/ /a+/ start?\n}",
    ):
        assert problem(outputs(grammar=text)) == ""
        assert not takes(outputs(grammar=text), "b")


def test_it_is_not_one_either_behind_thoughts_or_beside_tools():
    inner = outputs(grammar="start: /a+/ /a+/ start?")
    assert options_line(inner) == UNFORCED and options_line(outputs(regex="a")) == ""
    assert options_line(None) == ""


@pytest.mark.parametrize(
    "text",
    [
        'root ::= "a',
        'root ::= "a\\',
        "root ::= nothing",
        'x ::= "a"',
        "root ::= " + "(" * 5000 + '"a"' + ")" * 5000,
        '%llguidance {"no_forcing": false}\nstart: "a"',
        'start: "a"' + " " * 70_000,
        'start: "a\0"',
    ],
    ids=["quote", "escape", "rule", "root", "nesting", "options", "size", "NUL"],
)
def test_grammars_that_are_none_are_refused(text: str):
    error = refusal(structured_outputs={"grammar": text})
    assert error.param == "structured_outputs" and len(error.message) < 500


OLD_TAG = {
    "type": "structural_tag",
    "structures": [
        {"begin": "<f=a>", "schema": POINT, "end": "</f>"},
        {"begin": "<f=b>", "schema": {"type": "boolean"}, "end": "</f>"},
    ],
    "triggers": ["<f="],
}


def tagged(form: object) -> Grammar:
    grammar = asked(response_format={"type": "structural_tag", "format": form})
    assert grammar is not None
    return grammar


def test_the_older_structural_tag_holds_what_follows_a_trigger():
    for grammar in (
        asked(response_format=OLD_TAG),
        outputs(structural_tag=json.dumps(OLD_TAG)),
        outputs(structural_tag=OLD_TAG),
    ):
        assert takes(grammar, "free text")
        assert takes(grammar, 'see <f=a>{"x": 1}</f> and <f=b>true</f>.')
        assert not takes(grammar, "<f=b>5</f>") and not takes(grammar, "<f=c>")
        assert takes(grammar, "<f and more")


def const(value: str) -> dict[str, object]:
    return {"type": "const_string", "value": value}


TRUTH = {"type": "json_schema", "json_schema": {"type": "boolean"}}
TAG = {"type": "tag", "begin": "<t>", "content": TRUTH, "end": "</t>"}
FIRST = {"stop_after_first": True}
DIGITS = {"type": "regex", "pattern": "[0-9/]{2}"}


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        (const('a"b'), ['a"b'], ["a"]),
        (TRUTH, ["true"], ["1"]),
        (DIGITS, ["1/"], ["123"]),
        ({"type": "grammar", "grammar": 'root ::= "x"+'}, ["xx"], ["y"]),
        ({"type": "any_text"}, ["", "what\never"], []),
        (TAG, ["<t>true</t>"], ["<t>true", "true"]),
        ({**TAG, "end": ["</t>", "|"]}, ["<t>true|", "<t>true</t>"], ["<t>true"]),
        ({**TAG, "content": {"type": "any_text"}}, ["<t>so <b></t>"], ["<t>a</t>b"]),
        ({"type": "sequence", "elements": [const("a"), TAG, DIGITS]}, ["a<t>true</t>12"], ["a12"]),
        (
            {"type": "sequence", "elements": [{"type": "any_text"}, const("</think>"), TRUTH]},
            ["hm </think>true"],
            ["hm </think>maybe", "true"],
        ),
        ({"type": "or", "elements": [TRUTH, TAG]}, ["true", "<t>false</t>"], ["<t>"]),
        ({"type": "star", "content": TAG}, ["", "<t>true</t><t>true</t>"], ["<t>"]),
        ({"type": "plus", "content": TAG}, ["<t>true</t>"], [""]),
        ({"type": "optional", "content": TAG}, ["", "<t>true</t>"], ["<t>true</t>" * 2]),
        (
            {"type": "triggered_tags", "triggers": ["<t"], "tags": [TAG], "at_least_one": True},
            ["a <t>true</t> b"],
            ["a", "a <t b"],
        ),
        (
            {"type": "triggered_tags", "triggers": ["<t>"], "tags": [TAG], **FIRST},
            ["a <t>true</t>", "a"],
            ["a <t>true</t> b"],
        ),
        (
            {"type": "tags_with_separator", "tags": [TAG], "separator": ", "},
            ["", "<t>true</t>, <t>false</t>"],
            ["<t>true</t><t>false</t>"],
        ),
        (
            {"type": "tags_with_separator", "tags": [TAG], "separator": "", "at_least_one": True},
            ["<t>true</t><t>false</t>"],
            [""],
        ),
        (
            {"type": "tags_with_separator", "tags": [TAG], "separator": ",", **FIRST},
            ["", "<t>true</t>"],
            ["<t>true</t>,<t>false</t>"],
        ),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)  # fmt: skip
def test_formats_mean_what_they_say(form: object, good: list[str], bad: list[str]):
    grammar = tagged(form)
    assert [text for text in good if not takes(grammar, text)] == []
    assert [text for text in bad if takes(grammar, text)] == []


@pytest.mark.parametrize(
    ("form", "place"),
    [
        (None, "format"),
        ({"type": "qwen_xml_parameter", "json_schema": {}}, "format.type"),
        ({"type": "const_string"}, "format.value"),
        ({"type": "sequence", "elements": []}, "format.elements"),
        ({"type": "sequence", "elements": [{"type": "any_text"}, TRUTH]}, "format.elements[0]"),
        ({"type": "tag", "begin": "<a>", "content": TRUTH}, "format.end"),
        ({**TAG, "content": 5}, "format.content"),
        ({"type": "triggered_tags", "triggers": ["x"], "tags": [TAG]}, "format.tags[0].begin"),
        ({"type": "any_text", "excludes": ["a"]}, "format.excludes"),
        ({"type": "grammar", "grammar": "start: x }\n"}, "format"),
    ],
)
def test_formats_that_cannot_be_held_are_refused_by_place(form: object, place: str):
    error = refusal(response_format={"type": "structural_tag", "format": form})
    assert error.message.startswith(f"response_format.{place} ")


def test_formats_are_bounded():
    form: dict[str, object] = TRUTH
    for _ in range(40):
        form = {"type": "optional", "content": form}
    assert "deep" in refusal(structured_outputs={"structural_tag": {"format": form}}).message
    many = {"type": "or", "elements": [TRUTH] * 600}
    assert "512" in refusal(structured_outputs={"structural_tag": {"format": many}}).message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "whitespace_pattern": " "}}, "structured_outputs"),
        (
            {
                "structured_outputs": {
                    "json_object": True,
                    "whitespace_pattern": " ",
                    "disable_any_whitespace": True,
                }
            },
            "structured_outputs",
        ),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs"),
        ({"structured_outputs": {"choice": ["a", ""]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a\0b"}}, "structured_outputs"),
        ({"guided_regex": "a", "structured_outputs": {"regex": "a"}}, "guided_regex"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_regex"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "structured_outputs",
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "structural_tag"}}, "response_format"),
    ],
)
def test_askings_that_contradict_are_refused_by_name(fields: dict[str, object], param: str):
    assert refusal(**fields).param == param


def test_schemas_are_bounded():
    schema: dict[str, object] = {"type": "integer"}
    for _ in range(70):
        schema = {"type": "array", "items": schema}
    assert "64 levels" in refusal(structured_outputs={"json": schema}).message
    assert "too large" in refusal(structured_outputs={"json": {"enum": ["x" * 70_000]}}).message


def test_the_clients_own_compiler_options_are_dropped():
    grammar = outputs(json={**POINT, "x-guidance": {"whitespace_flexible": True, "lenient": True}})
    assert not takes(grammar, '{ "x" : 5 }')
