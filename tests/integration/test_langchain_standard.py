"""LangChain's own standard tests of a chat model, with ChatOpenAI before a real cluster.

What a test asks of the model itself, and not of the server, is named in `INTELLIGENCE`. All else
runs, with settings that any client may send: the demo model can write no JSON of its own accord, so
where it is held to a grammar a bias towards `"` and `}` lets its strings and objects end.
"""

import json
import urllib.request
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from tests.live import LiveCluster

pytestmark = [
    pytest.mark.ray,
    # What the client says of its own choice of method, which the suite makes it choose.
    pytest.mark.filterwarnings("ignore:Received a Pydantic BaseModel V1 schema:UserWarning"),
    # The client's own types do not foresee its own parsed objects.
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
]

COPIES = "the model must copy a value of the question into the call's arguments"
DECIDES = "tool_choice is auto: the model must decide by itself to call, and then to answer"
INTELLIGENCE = {
    "test_tool_calling": f"{COPIES}: 3, of magic_function(3)",
    "test_tool_calling_async": f"{COPIES}: 3, of magic_function(3)",
    "test_unicode_tool_call_integration": f"{COPIES}: a Chinese and a Japanese name",
    "test_agent_loop": DECIDES,
    "test_json_mode": "no schema is sent: the model must know which two keys the question names",
}
# Forced calls and schemas with strings, which a model must be able to end.
STRINGS = {
    "test_bind_runnables_as_tools",
    "test_structured_output",
    "test_structured_output_async",
    "test_structured_output_optional_param",
    "test_structured_output_pydantic_2_v1",
}
BIAS = {'"': 16.0, "}": 12.0}


class TestChatOpenAI(ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    def _settings(self, cluster: LiveCluster, request: pytest.FixtureRequest) -> None:
        name = request.node.originalname
        if name in INTELLIGENCE:
            pytest.skip(INTELLIGENCE[name])
        self._api = cluster.api
        self._bias = _bias(cluster) if name in STRINGS else None

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": "shoal-demo",
            "api_key": "EMPTY",
            "base_url": self._api,
            "temperature": 0,
            "max_tokens": 200,
            "frequency_penalty": 1.0,
            "stream_usage": True,
            "logit_bias": self._bias,
            # Where "any" forces a call, one is enough; without it a model may write several.
            "model_kwargs": {"parallel_tool_calls": False},
        }

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def has_tool_choice(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return False

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "mosaicml/mpt-7b"


def _bias(cluster: LiveCluster) -> dict[int, float]:
    return {_token_id(cluster, text): bias for text, bias in BIAS.items()}


def _token_id(cluster: LiveCluster, text: str) -> int:
    body = {"model": "shoal-demo", "prompt": text, "add_special_tokens": False}
    request = urllib.request.Request(
        cluster.url + "/tokenize", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        (token_id,) = json.loads(answer.read())["tokens"]
    return int(token_id)
