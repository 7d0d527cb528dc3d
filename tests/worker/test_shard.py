"""A replica as a whole: whatever else runs, on however many ranks, a request gets its tokens."""

import random
from pathlib import Path

import pytest

from tests.worker.replica import make_hybrid_model, make_model, replica

NUM_TOKENS = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(2, 512) for _ in range(rng.randrange(1, 80))] for _ in range(count)]


async def test_two_ranks_give_the_same_greedy_tokens_as_one_over_200_prompts(model: Path) -> None:
    many = prompts(200)
    greedy = {"temperature": 0, "max_tokens": NUM_TOKENS, "ignore_eos": True}
    async with replica(model, tp_size=1) as one:
        expected = await one.generate_all(many, **greedy)
    async with replica(model, tp_size=2) as two:
        assert await two.generate_all(many, **greedy) == expected
    assert all(len(tokens) == NUM_TOKENS for tokens in expected)


@pytest.mark.parametrize("tp_size", [1, 2])
async def test_steps_planned_while_others_run_bring_the_same_tokens(
    model: Path, tp_size: int
) -> None:
    many = prompts(40, seed=6)
    sampling = {"temperature": 0.8, "top_p": 0.9, "seed": 3, "max_tokens": NUM_TOKENS}
    async with replica(model, tp_size=tp_size) as plain:
        expected = await plain.generate_all(many, **sampling)
    async with replica(model, tp_size=tp_size, async_scheduling=True) as ahead:
        assert await ahead.generate_all(many, **sampling) == expected
        info = await ahead.info_when_idle()
    assert info.num_free_blocks == info.num_blocks


async def test_64_concurrent_requests_get_the_tokens_they_get_alone(model: Path) -> None:
    many = prompts(64, seed=1)
    sampling = {"temperature": 0.9, "seed": 11, "max_tokens": NUM_TOKENS, "ignore_eos": True}
    async with replica(model) as client:
        alone = [await client.generate(p, **sampling) for p in many]
        assert await client.generate_all(many, **sampling) == alone


async def test_preemption_by_a_tiny_pool_changes_no_token(model: Path) -> None:
    many = prompts(24, seed=2)
    sampling = {"temperature": 0.7, "seed": 5, "max_tokens": 60, "ignore_eos": True}
    async with replica(model) as roomy:
        expected = await roomy.generate_all(many, **sampling)
        assert roomy.num_preemptions == 0
    async with replica(model, num_blocks=24, block_size=8) as tight:
        assert await tight.generate_all(many, **sampling) == expected
        assert tight.num_preemptions > 0
        info = await tight.info_when_idle()
    assert info.num_free_blocks == info.num_blocks == 24


async def test_layers_with_windows_leave_room_for_others_and_change_no_token(
    tmp_path: Path,
) -> None:
    hybrid = make_hybrid_model(tmp_path)
    many = prompts(12, seed=4)
    sampling = {"temperature": 0, "max_tokens": 60, "ignore_eos": True}
    async with replica(hybrid) as roomy:
        expected = await roomy.generate_all(many, **sampling)
        assert roomy.num_preemptions == 0
    # Of the longest sequence all layers together would need 18 blocks.
    async with replica(hybrid, tp_size=2, num_blocks=12, block_size=8, max_model_len=140) as tight:
        assert await tight.generate_all(many, **sampling) == expected
        assert tight.num_preemptions > 0
        info = await tight.info_when_idle()
    assert info.num_free_blocks == info.num_blocks == 12


async def test_seeds_decide_the_tokens(model: Path) -> None:
    prompt = prompts(1, seed=3)[0]
    async with replica(model) as client:
        first, again, other = [
            await client.generate(
                prompt, temperature=1.0, seed=seed, max_tokens=20, ignore_eos=True
            )
            for seed in (1, 1, 2)
        ]
    assert first == again != other


async def test_invalid_request_is_refused_and_the_others_go_on(model: Path) -> None:
    async with replica(model) as client:
        with pytest.raises(AssertionError, match="vocabulary"):
            await client.generate([5, 100_000], max_tokens=4)
        assert len(await client.generate([5, 6], max_tokens=4, ignore_eos=True)) == 4
