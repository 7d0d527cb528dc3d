import pytest

from gateway.parsers.registry import detect_format


@pytest.mark.parametrize(
    ("template", "tokens", "name"),
    [
        ("{{ '<tool_call>' + call | tojson + '</tool_call>' }}", [], "hermes"),
        ("{{ '[TOOL_CALLS] [' }}", [], "mistral"),
        ("Respond with <|python_tag|>", [], "llama3"),
        ('{"name": function name, "parameters": dictionary of argument name and its value}', [],
         "llama3"),
        ("<tool_call>\n<function=name>", ["<tool_call>"], "json"),
        ("plain", ["[TOOL_CALLS]"], "mistral"),
        ("plain", ["<s>"], "json"),
        (None, [], "json"),
    ],
)  # fmt: skip
def test_a_models_format_is_told_by_its_template_or_vocabulary(template, tokens, name):
    assert detect_format([] if template is None else [template], tokens).name == name
