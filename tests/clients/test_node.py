"""Clients in JavaScript: the Vercel AI SDK, with both of its providers, and OpenAI's own."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

_FOLDER = Path(__file__).parent / "node"
pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(
        shutil.which("node") is None or not (_FOLDER / "node_modules").exists(),
        reason="needs node, and `npm install` in tests/clients/node",
    ),
]


def run(script: str, api: str) -> dict[str, Any]:
    command = ["node", str(_FOLDER / script), api]
    done = subprocess.run(command, capture_output=True, timeout=100, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check(found: dict[str, Any]) -> None:
    """What both have in common."""
    assert found["text"].strip() and found["streamed"] == found["text"]
    name, arguments = found["calls"][0]  # max_tokens may have cut off one behind it
    assert name == "weather" and arguments["city"] in ("Oslo", "Rome")
    assert found["object"]["kind"] in ("trout", "eel")
    assert (found["overlong"]["status"], found["wrongModel"]["status"]) == (400, 404)


def test_openai(api):
    found = run("openai_node.mjs", api)
    check(found)
    assert found["usage"]["completion_tokens"] > 0
    assert found["overlong"]["code"] == "context_length_exceeded"
    assert found["wrongModel"]["kind"] == "NotFoundError"


def test_vercel_ai_sdk(api):
    providers = run("ai_sdk.mjs", api)
    assert set(providers) == {"openai", "compatible"}
    for found in providers.values():
        check(found)
        assert found["finish"] in ("stop", "length")
        assert found["streamedUsage"]["outputTokens"] == found["usage"]["outputTokens"] > 0
        assert found["overlong"]["body"]["error"]["code"] == "context_length_exceeded"
        assert [name for name, _ in found["streamedCalls"]] == ["weather"]
