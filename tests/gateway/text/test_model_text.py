import asyncio
import json
from dataclasses import replace

import pytest

from gateway.errors import EngineError
from gateway.text.chat_template import DEFAULT_STOPS, ChatOptions
from gateway.text.model_text import GenerationDefaults, TextModel, TextModels
from tests.gateway.fake_router import MODEL, FakeView
from tests.gateway.small_tokenizer import BOS_ID, model_files

HI = [{"role": "user", "content": "hi"}]


def test_defaults_come_from_generation_config():
    files = model_files(temperature=0.6, top_p=0.9, top_k=20, repetition_penalty=1.1)
    assert TextModel.from_files(files).defaults == GenerationDefaults(
        temperature=0.6, top_p=0.9, top_k=20, repetition_penalty=1.1
    )


@pytest.mark.parametrize("data", [b"", b"no json", b"[]", b'{"temperature": "hot", "top_p": 7}'])
def test_unusable_defaults_are_left_out(data):
    assert GenerationDefaults.from_json(data) == GenerationDefaults()


def test_own_template_writes_its_own_special_tokens():
    text = TextModel.from_files(model_files())
    assert text.encode_chat(HI, ChatOptions(), None)[0] != BOS_ID
    assert text.encode_chat(HI, ChatOptions(), True)[0] == BOS_ID
    assert text.chat_stops == ()


def test_models_without_a_template_get_the_transcript_with_special_tokens():
    text = TextModel.from_files(model_files(chat_template=None))
    ids = text.encode_chat(HI, ChatOptions(), None)
    assert ids[0] == BOS_ID
    assert text.tokenizer.decode(ids[1:]) == "User: hi\nAssistant:"
    assert text.chat_stops == DEFAULT_STOPS


def test_template_file_wins_over_the_configuration():
    files = {**model_files(), "chat_template.jinja": b"file:{{ messages[0].content }}"}
    text = TextModel.from_files(files)
    assert text.tokenizer.decode(text.encode_chat(HI, ChatOptions(), None)) == "file:hi"


def test_the_tool_template_is_used_with_tools():
    files = model_files()
    templates = [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "tools"},
    ]
    files["tokenizer_config.json"] = json.dumps({"chat_template": templates}).encode()
    text = TextModel.from_files(files)
    tools = [{"type": "function", "function": {"name": "add"}}]
    assert text.tokenizer.decode(text.encode_chat(HI, ChatOptions(), None)) == "plain"
    assert text.tokenizer.decode(text.encode_chat(HI, ChatOptions(tools=tools), None)) == "tools"


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"tokenizer.json": b"{}"},
        {**model_files(), "chat_template.jinja": b"{% for %}"},
        {**model_files(), "chat_template.jinja": b"\xff"},
        {**model_files(), "tokenizer_config.json": b'{"chat_template": [{"name": "default"}]}'},
        {**model_files(), "tokenizer_config.json": b'{"chat_template": ["text"]}'},
    ],
)
def test_unusable_files_are_the_servers_error(files):
    with pytest.raises(EngineError):
        TextModel.from_files(files)


async def test_text_model_is_built_once_per_digest():
    view = FakeView()
    texts = TextModels(view)
    first, second = await asyncio.gather(texts.get(MODEL), texts.get(MODEL))
    assert first is second
    assert view.num_fetches == 1
    await texts.close()


async def test_a_failed_build_is_tried_again():
    view = FakeView(files={})
    texts = TextModels(view)
    with pytest.raises(EngineError):
        await texts.get(MODEL)
    view.files = model_files()
    assert isinstance(await texts.get(MODEL), TextModel)
    await texts.close()


async def test_a_client_that_leaves_does_not_cancel_the_load_of_others():
    texts = TextModels(FakeView())
    leaving = asyncio.create_task(texts.get(MODEL))
    staying = asyncio.create_task(texts.get(MODEL))
    await asyncio.sleep(0)
    leaving.cancel()
    assert isinstance(await staying, TextModel)
    with pytest.raises(asyncio.CancelledError):
        await leaving
    await texts.close()


async def test_preload_builds_new_models_and_drops_gone_ones():
    view = FakeView()
    texts = TextModels(view)
    await texts.preload()
    await texts.get(MODEL)
    assert view.num_fetches == 1
    view.known = []
    await texts.preload()
    await texts.get(MODEL)
    assert view.num_fetches == 2
    await texts.close()


async def test_a_model_that_fails_in_an_unknown_way_does_not_end_the_preloading(caplog):
    class OneIsBroken(FakeView):
        async def model_files(self, digest: str) -> dict[str, bytes]:
            if digest == "broken":
                raise LookupError("nobody thought of this")
            return await super().model_files(digest)

    view = OneIsBroken()
    view.known = [replace(MODEL, digest="broken"), MODEL]
    texts = TextModels(view)
    await texts.preload()
    assert "nobody thought of this" in caplog.text
    assert view.num_fetches == 1
    await texts.close()


async def test_large_work_leaves_the_event_loop():
    import threading

    texts = TextModels(FakeView())
    here = threading.get_ident()
    assert await texts.run(10, threading.get_ident) == here
    assert await texts.run(1_000_000, threading.get_ident) != here
    await texts.close()
