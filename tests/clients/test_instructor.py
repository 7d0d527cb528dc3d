"""instructor: structured outputs by tools, by JSON schema and by JSON mode."""

import openai
import pytest

from tests.clients.asks import HELLO, MODEL, SYSTEM, TOO_LONG, Fish

instructor = pytest.importorskip("instructor")
pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("default")]

CHAT = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": HELLO}]
MODES = ("TOOLS", "JSON_SCHEMA", "TOOLS_STRICT")


def ask(api, mode, messages=CHAT, model=MODEL, **fields):
    raw = openai.OpenAI(base_url=api, api_key="unused", max_retries=0)
    client = instructor.from_openai(raw, mode=getattr(instructor.Mode, mode))
    create = fields.pop("create", "create")
    return getattr(client.chat.completions, create)(
        model=model, messages=messages, response_model=Fish, max_retries=0, max_tokens=60, **fields
    )


@pytest.mark.parametrize("mode", MODES)
def test_a_model_of_pydantic_comes_back(api, mode):
    assert ask(api, mode).kind in ("trout", "eel")


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_it_grows_while_it_streams(api, mode):
    parts = list(ask(api, mode, create="create_partial"))
    assert len(parts) > 1
    Fish.model_validate(parts[-1].model_dump())


def test_an_overlong_prompt_names_its_code(api):
    with pytest.raises(Exception) as caught:
        ask(api, "TOOLS", [{"role": "user", "content": TOO_LONG}])
    assert "maximum context length" in str(caught.value)


def test_a_wrong_model_does_not_exist(api):
    with pytest.raises(Exception, match="does not exist"):
        ask(api, "TOOLS", model="no-such-model")
