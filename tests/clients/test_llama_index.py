"""LlamaIndex through its class for servers that are like OpenAI's."""

import openai
import pytest

from tests.clients.asks import HELLO, MODEL, SYSTEM, TOO_LONG, Fish, get_weather

pytest.importorskip("llama_index.llms.openai_like")
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("default")]

CHAT = [ChatMessage(role="system", content=SYSTEM), ChatMessage(role="user", content=HELLO)]


@pytest.fixture
def llm(api):
    def make(model=MODEL, **fields):
        return OpenAILike(
            model=model,
            api_base=api,
            api_key="unused",
            is_chat_model=fields.pop("is_chat_model", True),
            is_function_calling_model=True,
            max_tokens=60,
            temperature=0.0,
            max_retries=0,
            **fields,
        )

    return make


def test_chat(llm):
    assert llm().chat(CHAT).message.content.strip()


def test_completion(llm):
    assert llm(is_chat_model=False).complete(HELLO).text.strip()


def test_streamed_as_whole(llm):
    deltas = [part.delta or "" for part in llm().stream_chat(CHAT)]
    assert "".join(deltas) == llm().chat(CHAT).message.content


def test_tool_call(llm):
    tool = FunctionTool.from_defaults(get_weather)
    one = llm()
    response = one.chat_with_tools([tool], user_msg=HELLO, tool_required=True)
    calls = one.get_tool_calls_from_response(response)
    assert calls and all(call.tool_name == "get_weather" for call in calls)
    assert all(call.tool_kwargs["city"] in ("Oslo", "Rome") for call in calls)


def test_structured_output(llm):
    structured = llm().as_structured_llm(Fish)
    assert structured.chat(CHAT).raw.kind in ("trout", "eel")


def test_an_overlong_prompt_is_a_bad_request(llm):
    with pytest.raises(openai.BadRequestError) as caught:
        llm().chat([ChatMessage(role="user", content=TOO_LONG)])
    assert caught.value.code == "context_length_exceeded"


def test_a_wrong_model_is_not_found(llm):
    with pytest.raises(openai.NotFoundError):
        llm("no-such-model").chat(CHAT)
