"""`suffix`: the prompt of a model that fills in the middle; the refusal of one that does not."""

import pytest
from tokenizers import Tokenizer

from gateway.text.infill import find_infill
from tests.gateway.small_tokenizer import BOS_ID, model_files

MARKS = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]


@pytest.fixture
def coder(view):
    """The served model's tokenizer, with marks."""
    tokenizer = Tokenizer.from_buffer(model_files()["tokenizer.json"])
    tokenizer.add_special_tokens(MARKS)
    view.files = {**model_files(), "tokenizer.json": tokenizer.to_str().encode()}
    return tokenizer


async def test_the_texts_on_either_side_stand_between_the_marks(client, router, coder):
    body = {"model": "tiny", "prompt": "hello", "suffix": " the cat", "max_tokens": 2}
    answer = (await client.post("/v1/completions", json=body)).json()
    assert answer["choices"][0]["text"] == "hello world"  # as scripted

    def ids(text):
        return coder.encode(text, add_special_tokens=False).ids

    before, between, end = map(coder.token_to_id, MARKS)
    expected = [BOS_ID, before, *ids("hello"), between, *ids(" the cat"), end]
    assert router.request.prompt_token_ids == expected


async def test_each_prompt_of_a_list_has_the_suffix(client, router, coder):
    body = {"model": "tiny", "prompt": ["a", "b"], "suffix": "c"}
    assert (await client.post("/v1/completions", json=body)).status_code == 200
    prompts = [coder.decode(one.prompt_token_ids, False) for one in router.requests]
    assert prompts == [f"<s><fim_prefix>{text}<fim_suffix>c<fim_middle>" for text in ("a", "b")]


async def test_the_echo_is_what_the_client_wrote(client, coder):
    body = {"model": "tiny", "prompt": "the ", "suffix": "c", "echo": True}
    answer = (await client.post("/v1/completions", json=body)).json()
    assert answer["choices"][0]["text"] == "the hello world"


async def test_an_empty_suffix_asks_for_nothing(client, router, coder):
    body = {"model": "tiny", "prompt": [5, 6], "suffix": ""}
    assert (await client.post("/v1/completions", json=body)).status_code == 200
    assert router.request.prompt_token_ids == [5, 6]


@pytest.mark.parametrize("fields", [{"prompt": "a"}, {"prompt": [5]}], ids=["no marks", "ids"])
async def test_what_cannot_be_filled_is_refused(client, fields):
    body = {"model": "tiny", "suffix": "c", **fields}
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "suffix"


def test_marks_count_only_together():
    assert find_infill(["<fim_prefix>", "<fim_suffix>", "<s>"]) is None
    found = find_infill(["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"])
    assert found is not None
    assert found.prompt("a", "b") == "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>"
