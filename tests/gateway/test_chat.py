import re

import pytest

from gateway.tokens import SamplingSettings
from tests.gateway.fake_router import FakeView, ids_of, says

PATH = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]


async def ask(client, **fields):
    response = await client.post(PATH, json={"model": "tiny", "messages": HI, **fields})
    assert response.status_code == 200, response.text
    return response


async def test_answer_is_openais_object(client):
    response = await ask(client)
    answer = response.json()
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert answer["system_fingerprint"].startswith("fp_")
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hello world", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ]
    assert answer["usage"] == {
        "prompt_tokens": 15,
        "completion_tokens": 3,
        "total_tokens": 18,
        "prompt_tokens_details": {"cached_tokens": 3},
    }
    assert re.fullmatch(
        r"placement;dur=1\.000, queue;dur=2\.000, prefill;dur=3\.000, first-token;dur=[\d.]+, "
        r"decode;dur=4\.000, total;dur=[\d.]+",
        response.headers["server-timing"],
    )


async def test_prompt_is_the_rendered_template(client, router):
    await ask(client, messages=[{"role": "system", "content": "be brief"}, *HI])
    assert router.request.prompt_token_ids == ids_of(
        "<|system|>be brief\n<|user|>hi\n<|assistant|>"
    )


async def test_everything_reaches_the_engine(client, router):
    await ask(
        client,
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        presence_penalty=1,
        frequency_penalty=-1,
        repetition_penalty=1.5,
        max_completion_tokens=9,
        max_tokens=3,
        min_tokens=2,
        seed=5,
        stop_token_ids=[7, 8],
        ignore_eos=True,
        logit_bias={"9": 2},
        allowed_token_ids=[5, 6],
        logprobs=True,
        top_logprobs=2,
        prompt_logprobs=1,
        priority=-3,
        user="someone",
        cache_salt="salt",
    )
    assert router.request.sampling == SamplingSettings(
        max_tokens=9,
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        presence_penalty=1.0,
        frequency_penalty=-1.0,
        repetition_penalty=1.5,
        seed=5,
        min_tokens=2,
        stop_token_ids=(7, 8),
        ignore_eos=True,
        logit_bias=((9, 2.0),),
        allowed_token_ids=(5, 6),
        logprobs=2,
        prompt_logprobs=1,
    )
    request = router.request
    assert (request.priority, request.tenant, request.cache_salt) == (-3, "someone", "salt")


async def test_silence_leaves_the_rest_of_the_window(client, router):
    await ask(client)
    assert router.request.sampling.max_tokens == 128 - 15


async def test_choices_share_the_prompt_and_differ_by_seed(client, router):
    answer = (await ask(client, n=3, seed=1)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len({request.sampling.seed for request in router.requests}) == 3
    assert len({request.request_id for request in router.requests}) == 3
    assert answer["usage"]["prompt_tokens"] == 15


async def test_stop_cuts_and_names_its_reason(client):
    (choice,) = (await ask(client, stop=[" wor", "zzz"])).json()["choices"]
    assert choice["message"]["content"] == "hello"
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", " wor")


async def test_logprobs_are_openais(client):
    (choice,) = (await ask(client, logprobs=True, top_logprobs=1, max_tokens=1)).json()["choices"]
    hello = {"token": "hello", "logprob": -0.5, "bytes": [104, 101, 108, 108, 111]}
    assert choice["logprobs"] == {
        "content": [{**hello, "top_logprobs": [hello]}],
        "refusal": None,
    }


async def test_prompt_logprobs_have_one_entry_a_prompt_token(client, router):
    answer = (await ask(client, prompt_logprobs=0)).json()
    entries = answer["prompt_logprobs"]
    assert len(entries) == len(router.request.prompt_token_ids)
    second = str(router.request.prompt_token_ids[1])
    assert entries[0] is None
    assert entries[1][second]["rank"] == 1


async def test_token_ids_are_returned_where_asked(client, router):
    answer = (await ask(client, return_token_ids=True)).json()
    assert answer["prompt_token_ids"] == router.request.prompt_token_ids
    assert answer["choices"][0]["token_ids"] == [*ids_of("hello world"), 1]


async def test_final_message_is_continued(client, router):
    messages = [*HI, {"role": "assistant", "content": "Io"}]
    await ask(client, messages=messages, add_generation_prompt=False, continue_final_message=True)
    assert router.request.prompt_token_ids == ids_of("<|user|>hi\n<|assistant|>Io")


async def test_the_end_of_a_long_prompt_is_kept(client, router):
    await ask(client, messages=[{"role": "user", "content": "a" * 500}], truncate_prompt_tokens=-1)
    assert len(router.request.prompt_token_ids) == 127
    assert router.request.sampling.max_tokens == 1


async def test_conversations_with_tools_and_parts_are_taken(client, router):
    tool = {"type": "function", "function": {"name": "add"}}
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "one"}, "two"]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "name": "add", "content": "1"},
    ]
    answer = (await ask(client, messages=messages, tools=[tool], tool_choice="auto")).json()
    assert answer["choices"][0]["message"]["content"] == "hello world"
    assert router.request.prompt_token_ids == ids_of(
        "<|user|>one\ntwo\n<|assistant|>\n<|tool|>1\n<|assistant|>"
    )


async def test_tools_reach_the_template_with_their_arguments_as_objects(client, view, router):
    template = (
        b"{% if tools %}{{ tools[0].function.name }}{% endif %}|"
        b"{{ messages[1].tool_calls[0].function.arguments.a }}"
    )
    view.files = {**view.files, "chat_template.jinja": template}
    tool = {"type": "function", "function": {"name": "add"}}
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [*HI, {"role": "assistant", "content": None, "tool_calls": [call]}]
    await ask(client, messages=messages, tools=[tool])
    assert router.request.prompt_token_ids == ids_of("add|1")
    await ask(client, messages=messages, tools=[tool], tool_choice="none", temperature=0)
    assert router.requests[1].prompt_token_ids == ids_of("|1")


async def test_models_without_a_template_stop_at_the_next_speaker(client, view, router):
    files = dict(view.files)
    del files["tokenizer_config.json"]
    view.files = files
    router.script = says("Io amo\nUser: and", ends=False)
    (choice,) = (await ask(client)).json()["choices"]
    assert choice["message"]["content"] == "Io amo"
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "ignored",
    [
        {"store": True, "metadata": {"a": "b"}, "service_tier": "auto"},
        {"parallel_tool_calls": True, "response_format": {"type": "text"}},
        {"something_new": [1, 2]},
        {"n": None, "stop": None, "seed": None, "temperature": None, "logprobs": None},
    ],
)
async def test_unknown_and_harmless_fields_are_ignored(client, ignored):
    await ask(client, **ignored)


async def test_a_model_may_go_without_its_name_where_it_is_the_only_one(client):
    response = await client.post(PATH, json={"messages": HI})
    assert response.json()["model"] == "tiny"


async def test_every_served_name_is_answered_under_that_name(client, router):
    assert (await ask(client, model="org/tiny-alias")).json()["model"] == "org/tiny-alias"
    assert router.request.model == "org/tiny-alias"


async def test_no_model_yet_is_unavailable(app, client, view: FakeView):
    view.known = []
    response = await client.post(PATH, json={"messages": HI})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "unavailable"


async def test_too_long_is_worded_for_the_clients_that_read_it(client):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "a" * 500}]}
    error = (await client.post(PATH, json=body)).json()["error"]
    assert "Input tokens exceed the configured limit" in error["message"]
    assert "maximum context length" in error["message"]
    assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        {"type": "input_image", "image_url": "data:image/png;base64,AA=="},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
        {"type": "video_url", "video_url": {"url": "http://x/y.mp4"}},
        {"type": "file", "file": {"file_id": "file-1"}},
    ],
    ids=lambda part: part["type"],
)
async def test_parts_that_are_no_text_are_refused_by_the_models_name(client, part):
    content = [{"type": "text", "text": "What is this?"}, part]
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
    response = await client.post("/v1/chat/completions", json=body)
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == "messages[0].content[1]"
    assert "`tiny` takes text only" in error["message"] and part["type"] in error["message"]
