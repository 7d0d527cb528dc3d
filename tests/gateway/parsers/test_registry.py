import pytest

from gateway.parsers import formats, reasoning_formats
from gateway.parsers.harmony import HARMONY, HARMONY_CALLS
from gateway.parsers.registry import (
    AUTO,
    REASONING_PARSER_NAMES,
    TOOL_PARSER_NAMES,
    ParserNames,
    choose_formats,
    detect_format,
    detect_reasoning,
)
from protos.answer_parsers import REASONING_PARSERS, TOOL_CALL_PARSERS


@pytest.mark.parametrize(
    ("template", "tokens", "name"),
    [
        ("{{ '<tool_call>' + call | tojson + '</tool_call>' }}", [], "hermes"),
        ("{{ '[TOOL_CALLS] [' }}", [], "mistral"),
        ("Respond with <|python_tag|>", [], "llama3_json"),
        ('{"name": function name, "parameters": dictionary of argument name and its value}', [],
         "llama3_json"),
        ("<tool_call>\n<function=name>", ["<tool_call>"], "json"),
        ("<tool_call>\n<function=name>\n<parameter=x>", [], "qwen3_coder"),
        ("<|tool_list_start|>", [], "lfm2"),
        ("{{ '<|tool_call>call:' + function['name'] + '{' }}", [], "gemma4"),
        ("plain", ["<|tool_call>"], "gemma4"),
        ("plain", ["[TOOL_CALLS]"], "mistral"),
        ("plain", ["<|tool_call_start|>"], "lfm2"),
        ("plain", ["<s>"], "json"),
        (None, [], "json"),
    ],
)  # fmt: skip
def test_a_models_format_is_told_by_its_template_or_vocabulary(template, tokens, name):
    assert detect_format([] if template is None else [template], tokens).name == name


@pytest.mark.parametrize(
    ("template", "tool_format", "found"),
    [
        ("content.split('</think>')[-1]", formats.GENERIC, reasoning_formats.THINK),
        ("<think>\n", formats.HERMES, reasoning_formats.QWEN3),
        ("<think>", formats.KIMI_K2, reasoning_formats.KIMI_K2),
        ("<think></think> <response></response>", formats.GENERIC, reasoning_formats.GRANITE33),
        ("[THINK]", formats.MISTRAL, reasoning_formats.MISTRAL),
        ("<|START_THINKING|>", formats.COHERE, reasoning_formats.COHERE),
        ("anything", HARMONY_CALLS, HARMONY),
        ("I think so", formats.HERMES, None),
    ],
)
def test_a_models_way_of_thinking_is_told_by_its_template(template, tool_format, found):
    assert detect_reasoning([template], tool_format) is found


def test_an_operator_may_decide_otherwise():
    template = ["<think> <tool_call>"]
    assert choose_formats(AUTO, template, []) == (formats.HERMES, reasoning_formats.QWEN3)
    chosen = choose_formats(ParserNames("pythonic", "none"), template, [])
    assert chosen == (formats.PYTHONIC, None)
    chosen = choose_formats(ParserNames(reasoning="deepseek_r1"), template, [])
    assert chosen == (formats.HERMES, reasoning_formats.DEEPSEEK_R1)
    for names in (ParserNames("openai"), ParserNames(reasoning="openai_gptoss")):
        assert choose_formats(names, template, []) == (HARMONY_CALLS, HARMONY)
    # The form that the template shows is kept where the name has two.
    listed = choose_formats(ParserNames("mistral"), ["[TOOL_CALLS] ["], [])
    assert listed == (formats.MISTRAL, None)


def test_the_launcher_offers_the_names_that_are_known():
    assert TOOL_CALL_PARSERS == TOOL_PARSER_NAMES
    assert REASONING_PARSERS == REASONING_PARSER_NAMES
