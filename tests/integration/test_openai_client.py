"""The OpenAI client against a real cluster: sampling, logprobs, several choices, errors,
concurrency.
"""

import asyncio

import openai
import pytest
import pytest_asyncio

from tests.live import LiveCluster

pytestmark = pytest.mark.ray

SENTENCES = [
    "I love music.", "She reads a book.", "We drink water.", "They see the house.",
    "He eats an apple.", "You love reading.", "The boy sees the dog.", "I drink coffee.",
]  # fmt: skip


@pytest_asyncio.fixture(loop_scope="session")
async def client(cluster: LiveCluster):  # type: ignore[no-untyped-def]
    async with openai.AsyncOpenAI(base_url=cluster.api, api_key="EMPTY", max_retries=0) as c:
        yield c


async def translate(client: openai.AsyncOpenAI, sentence: str, **kwargs: object) -> str:
    stream = await client.chat.completions.create(
        model="shoal-demo",
        messages=[
            {
                "role": "system",
                "content": "You are a helpful assistant that translates English to Spanish.",
            },
            {"role": "user", "content": sentence},
        ],
        temperature=0,
        stream=True,
        max_tokens=32,
        **kwargs,  # type: ignore[arg-type]
    )
    parts = [c.choices[0].delta.content or "" async for c in stream if c.choices]
    return "".join(parts)


async def test_64_concurrent_streams_answer_as_alone(client: openai.AsyncOpenAI) -> None:
    alone = [await translate(client, s) for s in SENTENCES]
    together = await asyncio.gather(*(translate(client, s) for s in SENTENCES * 8))
    assert list(together) == alone * 8


async def test_seeded_sampling_repeats_under_load(client: openai.AsyncOpenAI) -> None:
    async def sample(seed: int) -> str:
        answer = await client.completions.create(
            model="shoal-demo", prompt="I love", seed=seed, temperature=1.5, max_tokens=24
        )
        return answer.choices[0].text

    alone = [await sample(seed) for seed in range(4)]
    together = await asyncio.gather(*(sample(seed % 4) for seed in range(48)))
    assert list(together) == alone * 12
    assert len(set(alone)) > 1


async def test_logprobs_are_of_the_tokens_returned(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="shoal-demo",
        messages=[{"role": "user", "content": "I love music."}],
        logprobs=True,
        top_logprobs=3,
        temperature=0,
        max_tokens=8,
    )
    choice = answer.choices[0]
    assert choice.logprobs is not None and choice.logprobs.content is not None
    # type: ignore[union-attr]
    assert len(choice.logprobs.content) == answer.usage.completion_tokens
    for entry in choice.logprobs.content:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3
        assert entry.logprob == pytest.approx(entry.top_logprobs[0].logprob, abs=1e-5)


async def test_prompt_is_found_in_the_cache_the_second_time(client: openai.AsyncOpenAI) -> None:
    prompt = [5 + i % 200 for i in range(300)]

    async def cached() -> int:
        answer = await client.completions.create(model="shoal-demo", prompt=prompt, max_tokens=1)
        details = answer.usage.prompt_tokens_details  # type: ignore[union-attr]
        return details.cached_tokens or 0 if details else 0

    first, second = await cached(), await cached()
    assert first == 0 and second >= 288


async def test_unknown_model_is_not_found(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(
            model="gpt-5", messages=[{"role": "user", "content": "x"}]
        )
    assert caught.value.code == "model_not_found"


async def test_overlong_prompt_names_the_limit(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.completions.create(model="shoal-demo", prompt=[7] * 5000)
    assert caught.value.code == "context_length_exceeded"
    assert "maximum context length" in caught.value.message
