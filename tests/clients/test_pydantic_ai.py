"""pydantic-ai: agents with tools and typed outputs."""

import pytest

from tests.clients.asks import HELLO, MODEL, SYSTEM, TOO_LONG, Fish, get_weather

pytest.importorskip("pydantic_ai")
from pydantic_ai import Agent, ModelHTTPError, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("default")]


@pytest.fixture
def agent(api):
    def make(name=MODEL, **fields):
        model = OpenAIChatModel(name, provider=OpenAIProvider(base_url=api, api_key="unused"))
        settings = {"max_tokens": 60, "temperature": 0, **fields.pop("settings", {})}
        return Agent(model, system_prompt=SYSTEM, model_settings=settings, retries=0, **fields)

    return make


async def test_chat(agent):
    result = await agent().run(HELLO)
    assert result.output.strip()


async def test_streamed_as_whole(agent):
    async with agent().run_stream(HELLO) as stream:
        parts = [part async for part in stream.stream_text(delta=True, debounce_by=None)]
    assert "".join(parts) == (await agent().run(HELLO)).output


@pytest.mark.parametrize("way", [ToolOutput, NativeOutput])
async def test_typed_output(agent, way):
    result = await agent(output_type=way(Fish)).run(HELLO)
    assert result.output.kind in ("trout", "eel")


async def test_a_forced_tool_is_called_with_arguments_that_fit(agent):
    maker = agent(output_type=ToolOutput(get_weather))
    result = await maker.run("What is the weather in Oslo?")
    assert result.output in ("Sunny in Oslo.", "Sunny in Rome.")


async def test_an_overlong_prompt_is_a_400(agent):
    with pytest.raises(ModelHTTPError) as caught:
        await agent().run(TOO_LONG)
    assert caught.value.status_code == 400
    assert "context_length_exceeded" in str(caught.value.body)


async def test_a_wrong_model_is_a_404(agent):
    with pytest.raises(ModelHTTPError) as caught:
        await agent("no-such-model").run(HELLO)
    assert caught.value.status_code == 404
