"""What is printed to be pasted must work when pasted."""

import ast
import json
import shlex

import pytest

from cluster.examples import curl, langchain

URL = "http://localhost:8000/v1"


@pytest.mark.parametrize("is_demo", [True, False])
def test_curl_is_one_shell_command_with_a_json_body(is_demo: bool) -> None:
    words = shlex.split(curl(URL, "it's a model", None, is_demo).replace("\\\n", " "))
    assert words[:2] == ["curl", f"{URL}/chat/completions"]
    body = json.loads(words[words.index("-d") + 1])
    assert body["model"] == "it's a model" and body["messages"][-1]["role"] == "user"


def test_curl_asks_for_the_key_without_showing_it() -> None:
    text = curl(URL, "m", "secret", False)
    assert "secret" not in text and 'Authorization: Bearer $API_KEY"' in text


@pytest.mark.parametrize("key", [None, "secret"])
def test_langchain_snippet_is_python_without_the_key(key: str | None) -> None:
    text = langchain(URL, 'mo"del', key, True)
    tree = ast.parse(text)
    assert "secret" not in text
    constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert {'mo"del', URL, "system", "human"} <= constants
