"""`best_of`: more candidates than answers; those with the likeliest tokens are answered."""

import pytest

from gateway.tokens import Timing, TokenDelta, TokenLogprobs
from tests.gateway.fake_router import ids_of

# Of four candidates: the third is the best, then the first.
LOGPROBS = [-0.5, -2.0, -0.1, -3.0]
WORDS = ["hello", "world", "cat", "mat"]


@pytest.fixture
def scored(router):
    """Candidates end after one token of the words above, scored as above."""

    def script(request):
        place = int(request.request_id.rsplit("-", 1)[1])
        word, logprob = WORDS[place % 4], LOGPROBS[place % 4]
        ids = ids_of(word)
        scores = None
        if request.sampling.logprobs is not None:
            scores = [TokenLogprobs(id_, logprob, 1, []) for id_ in ids]
        prompt_scores = None
        if request.sampling.prompt_logprobs is not None:
            prompt_scores = [
                TokenLogprobs(id_, -9.0 * place, 1, []) for id_ in request.prompt_token_ids[1:]
            ]
        timing = Timing(engine="r0")
        return [[TokenDelta(ids, "length", scores, prompt_scores, timing)]]

    router.script = script
    return router


async def ask(client, **fields):
    response = await client.post("/v1/completions", json={"model": "tiny", **fields})
    assert response.status_code == 200, response.text
    return response.json()


async def test_the_best_are_answered_best_first(client, scored):
    answer = await ask(client, prompt="a", n=2, best_of=4)
    assert [(one["index"], one["text"]) for one in answer["choices"]] == [(0, "cat"), (1, "hello")]
    assert all(one["logprobs"] is None for one in answer["choices"])
    assert len(scored.requests) == 4
    num_generated = sum(len(ids_of(word)) for word in WORDS)
    assert answer["usage"]["completion_tokens"] == num_generated  # all were made


async def test_each_prompt_has_its_own_best(client, scored):
    answer = await ask(client, prompt=["a", "b"], best_of=4)
    assert [(one["index"], one["text"]) for one in answer["choices"]] == [(0, "cat"), (1, "cat")]
    assert answer["usage"]["prompt_tokens"] == 4


async def test_an_echoed_prompts_scores_do_not_count(client, scored):
    answer = await ask(client, prompt="the cat", best_of=4, echo=True, logprobs=0)
    (choice,) = answer["choices"]
    assert choice["text"] == "the catcat"
    assert choice["logprobs"]["token_logprobs"][-1] == -0.1


async def test_as_many_candidates_as_choices_are_in_their_order(client, scored):
    answer = await ask(client, prompt="a", n=4, best_of=4)
    assert [one["text"] for one in answer["choices"]] == WORDS
    assert all(request.sampling.logprobs is None for request in scored.requests)


async def test_candidates_have_seeds_of_their_own_and_the_first_the_requests(client, scored):
    await ask(client, prompt="a", best_of=4, seed=7)
    seeds = [request.sampling.seed for request in scored.requests]
    assert seeds[0] == 7 and len(set(seeds)) == 4
