import pytest

from tests.gateway.fake_router import ids_of
from tests.gateway.small_tokenizer import BOS_ID

PATH = "/v1/completions"


async def ask(client, **fields):
    response = await client.post(PATH, json={"model": "tiny", **fields})
    assert response.status_code == 200, response.text
    return response.json()


async def test_answer_is_openais_object(client):
    answer = await ask(client, prompt="hello")
    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [
        {
            "index": 0,
            "text": "hello world",
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ]


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("hello", [[BOS_ID, *ids_of("hello")]]),
        (["hello", "the"], [[BOS_ID, *ids_of("hello")], [BOS_ID, *ids_of("the")]]),
        ([5, 6], [[5, 6]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
    ],
    ids=["text", "texts", "ids", "lists of ids"],
)
async def test_every_form_of_prompt(client, router, prompt, prompts):
    answer = await ask(client, prompt=prompt)
    assert [request.prompt_token_ids for request in router.requests] == prompts
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(prompts)))
    assert answer["usage"]["prompt_tokens"] == sum(map(len, prompts))


async def test_special_tokens_can_be_left_out(client, router):
    await ask(client, prompt="hello", add_special_tokens=False)
    assert router.request.prompt_token_ids == ids_of("hello")


async def test_openais_default_length(client, router):
    await ask(client, prompt="hello")
    assert router.request.sampling.max_tokens == 16


async def test_choices_of_a_prompt_follow_each_other(client, router):
    answer = await ask(client, prompt=["hello", "the"], n=2, seed=9)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    seeds = [request.sampling.seed for request in router.requests]
    assert seeds[:2] == seeds[2:]
    assert seeds[0] == 9 != seeds[1]


async def test_echo_of_text_and_of_ids(client):
    answer = await ask(client, prompt="the ", echo=True)
    assert answer["choices"][0]["text"] == "the hello world"
    answer = await ask(client, prompt=[BOS_ID, *ids_of("the")], echo=True)
    assert answer["choices"][0]["text"] == "thehello world"


async def test_logprobs_are_openais_four_lists(client):
    (choice,) = (await ask(client, prompt="a", logprobs=0, max_tokens=2))["choices"]
    assert choice["logprobs"] == {
        "text_offset": [0, 5],
        "token_logprobs": [-0.5, -0.5],
        "tokens": ["hello", " world"],
        "top_logprobs": [{"hello": -0.5}, {" world": -0.5}],
    }


async def test_parts_of_characters_have_names_of_their_own(client, router):
    from tests.gateway.fake_router import says

    router.script = says("😀")
    (choice,) = (await ask(client, prompt="a", logprobs=0, max_tokens=4))["choices"]
    assert choice["text"] == "😀"
    assert choice["logprobs"]["tokens"] == [
        "bytes:\\xf0",
        "bytes:\\x9f",
        "bytes:\\x98",
        "bytes:\\x80",
    ]


async def test_echoed_logprobs_begin_with_the_prompts(client, router):
    (choice,) = (await ask(client, prompt="hello the", logprobs=1, echo=True, max_tokens=1))[
        "choices"
    ]
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["<s>", "hello", " the", "hello"]
    assert logprobs["token_logprobs"] == [None, -0.5, -0.5, -0.5]
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["text_offset"] == [0, 0, 5, 9]
    assert router.request.sampling.prompt_logprobs == 1


async def test_a_prompt_is_scored_without_any_output(client, router):
    answer = await ask(client, prompt="hello the", logprobs=1, echo=True, max_tokens=0)
    (choice,) = answer["choices"]
    assert choice["text"] == "hello the"
    assert choice["logprobs"]["tokens"] == ["<s>", "hello", " the"]
    assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 0
    assert router.request.sampling.max_tokens == 1


async def test_prompt_logprobs_belong_to_their_choice(client):
    answer = await ask(client, prompt=[[5, 6], [7, 8, 9]], prompt_logprobs=0)
    assert [len(choice["prompt_logprobs"]) for choice in answer["choices"]] == [2, 3]


async def test_token_ids_belong_to_their_choice(client):
    answer = await ask(client, prompt=[[5, 6], [7]], return_token_ids=True)
    assert [choice["prompt_token_ids"] for choice in answer["choices"]] == [[5, 6], [7]]
    assert answer["choices"][0]["token_ids"] == [*ids_of("hello world"), 1]


async def test_streamed_texts_joined_are_the_whole_answer(client):
    import json

    body = {"model": "tiny", "prompt": ["hello", "the"], "echo": True, "logprobs": 1}
    whole = (await client.post(PATH, json=body)).json()["choices"]
    response = await client.post(PATH, json={**body, "stream": True})
    chunks = [json.loads(line[6:]) for line in response.text.split("\n\n")[:-2]]
    for index in (0, 1):
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert "".join(choice["text"] for choice in own) == whole[index]["text"]
        streamed = [token for choice in own for token in choice["logprobs"]["tokens"]]
        assert streamed == whole[index]["logprobs"]["tokens"]
        offsets = [offset for choice in own for offset in choice["logprobs"]["text_offset"]]
        assert offsets == whole[index]["logprobs"]["text_offset"]
