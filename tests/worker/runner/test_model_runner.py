"""ModelRunner end to end on tiny models: whole generations against transformers, ranks, slots,
scores.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.worker.models.harness import (
    PlanDriver,
    driver_for,
    llama_config,
    make_checkpoint,
    make_runner,
    random_tokens,
    reference_logits,
)
from tests.worker.simulated_group import run_ranks
from worker.engine.sampling_params import SamplingParams
from worker.engine.step import StepPlan, StepResult, TokenLogprobs
from worker.errors import InvalidRequest, MemoryPlanError
from worker.parallel.group import TPGroup
from worker.runner.device import default_num_threads, resolve_device
from worker.runner.model_runner import ModelRunner


def greedy_reference(model: Any, prompt: list[int], num_tokens: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(int(reference_logits(model, tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def run(runner: ModelRunner, driver: PlanDriver, *counts: tuple[int, int]) -> StepResult:
    """One step; what was sampled becomes the sequences' next tokens."""
    plan = driver.plan(*counts)
    result = runner.execute(plan)
    sampled = [s.slot for s in plan.sequences if s.is_sampled]
    for slot, token_id in zip(sampled, result.token_ids, strict=True):
        driver.tokens[slot].append(token_id)
    return result


def generate(runner: ModelRunner, driver: PlanDriver, slot: int, num_tokens: int) -> None:
    for _ in range(num_tokens):
        run(runner, driver, (slot, 1))


def expected_scores(model: Any, prompt: list[int]) -> Tensor:
    """Log-probability of each prompt token but the first."""
    logprobs = reference_logits(model, prompt).log_softmax(dim=-1)
    return logprobs[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]


def test_greedy_generation_equals_transformers(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path, llama_config())
    runner = make_runner(tmp_path)
    driver = driver_for(runner)
    prompts = {slot: random_tokens(9 + 5 * slot, seed=slot) for slot in range(3)}
    for slot, prompt in prompts.items():
        driver.admit(slot, prompt)
    run(runner, driver, *((slot, len(prompt)) for slot, prompt in prompts.items()))
    for _ in range(7):
        run(runner, driver, *((slot, 1) for slot in prompts))
    for slot, prompt in prompts.items():
        assert driver.tokens[slot][len(prompt) :] == greedy_reference(model, prompt, 8)


def test_unfinished_chunk_samples_nothing(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())
    runner = make_runner(tmp_path)
    driver = driver_for(runner)
    driver.admit(0, random_tokens(20, seed=0))
    assert run(runner, driver, (0, 12)) == StepResult(token_ids=[])
    assert len(run(runner, driver, (0, 8)).token_ids) == 1


def test_plan_with_releases_only_is_applied(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())
    runner = make_runner(tmp_path)
    driver = driver_for(runner)
    driver.admit(0, random_tokens(20, seed=0))
    run(runner, driver, (0, 20))
    driver.release(0)
    assert runner.execute(driver.plan()) == StepResult(token_ids=[])


def test_resumed_sequence_continues_as_if_never_preempted(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path, llama_config())
    runner = make_runner(tmp_path)
    driver = driver_for(runner)
    prompt = random_tokens(14, seed=4)
    driver.admit(0, prompt)
    run(runner, driver, (0, 14))
    generate(runner, driver, 0, 3)
    output = driver.tokens[0][14:]
    driver.release(0)
    driver.admit(5, prompt, output)  # recomputes prompt and output, in another slot, in two chunks
    run(runner, driver, (5, 10))
    run(runner, driver, (5, 8))
    generate(runner, driver, 5, 3)
    assert driver.tokens[5][14:] == greedy_reference(model, prompt, 8)


def test_reused_slot_forgets_its_former_sequence(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path, llama_config())
    runner = make_runner(tmp_path)
    driver = driver_for(runner)
    penalized = SamplingParams(max_tokens=9, temperature=0.0, presence_penalty=2.0)
    driver.admit(0, random_tokens(30, seed=1), sampling=penalized)
    run(runner, driver, (0, 30))
    driver.release(0)
    prompt = random_tokens(11, seed=2)
    driver.admit(0, prompt)  # in the very plan that releases the slot
    run(runner, driver, (0, 11))
    generate(runner, driver, 0, 4)
    assert driver.tokens[0][11:] == greedy_reference(model, prompt, 5)


@pytest.mark.parametrize("chunks", [[20], [7, 13], [19, 1]])
def test_prompt_scores_do_not_depend_on_chunks(tmp_path: Path, chunks: list[int]) -> None:
    model = make_checkpoint(tmp_path, llama_config())
    runner = make_runner(tmp_path)
    driver = driver_for(runner)
    prompt = random_tokens(20, seed=6)
    sampling = SamplingParams(max_tokens=5, temperature=0.0, prompt_logprobs=2)
    driver.admit(0, random_tokens(5, seed=7))  # rows of another sequence come first
    driver.admit(1, prompt, sampling=sampling)
    scores: list[TokenLogprobs] = []
    for i, chunk in enumerate(chunks):
        result = run(runner, driver, *([(0, 5)] if i == 0 else []), (1, chunk))
        scores += result.prompt_logprobs.get(1, [])
        assert 0 not in result.prompt_logprobs
    assert run(runner, driver, (1, 1)).prompt_logprobs == {}
    assert [s.token_id for s in scores] == prompt[1:]
    found = torch.tensor([s.logprob for s in scores])
    torch.testing.assert_close(found, expected_scores(model, prompt), rtol=0, atol=1e-4)
    assert all(len(s.top_ids) == 2 for s in scores)


def test_scores_already_reported_are_not_repeated(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())
    runner = make_runner(tmp_path)
    driver = driver_for(runner)
    prompt = random_tokens(12, seed=6)
    sampling = SamplingParams(max_tokens=5, temperature=0.0, prompt_logprobs=0)
    driver.admit(0, prompt, sampling=sampling, num_prompt_logprobs_done=7)
    scores = run(runner, driver, (0, 12)).prompt_logprobs[0]
    assert [s.token_id for s in scores] == prompt[8:]


def test_scores_of_a_long_prompt_go_through_the_head_in_pieces(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path, llama_config(max_position_embeddings=512))
    runner = make_runner(tmp_path)
    driver = driver_for(runner)
    prompt = random_tokens(300, seed=8)
    sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    driver.admit(0, prompt, sampling=sampling)
    scores = run(runner, driver, (0, 300)).prompt_logprobs[0]
    found = torch.tensor([s.logprob for s in scores])
    torch.testing.assert_close(found, expected_scores(model, prompt), rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_ranks_compute_what_one_rank_does(tmp_path: Path, size: int, tied: bool) -> None:
    """Two KV heads over four ranks, 99 vocabulary rows and 45 features: all kinds of uneven."""
    overrides = {"tie_word_embeddings": tied, "attention_bias": True, "intermediate_size": 45}
    model = make_checkpoint(tmp_path, llama_config(**overrides))
    prompts = {slot: random_tokens(10 + slot, seed=slot) for slot in range(2)}
    sampling = SamplingParams(max_tokens=9, temperature=0.0, prompt_logprobs=1)

    def body(tp: TPGroup) -> tuple[list[StepResult], Tensor]:
        runner = make_runner(tmp_path, tp)
        driver = driver_for(runner)
        for slot, prompt in prompts.items():
            driver.admit(slot, prompt, sampling=sampling)
        results = [runner.execute(driver.plan((0, 10), (1, 11)))]
        for slot in prompts:
            driver.tokens[slot].append(5)
        return results, runner.compute_logits(driver.plan((0, 1), (1, 1)))

    ranks = run_ranks(size, body)
    for _, logits in ranks:
        for row, prompt in zip(logits, prompts.values(), strict=True):
            expected = reference_logits(model, [*prompt, 5])[-1]
            torch.testing.assert_close(row, expected, rtol=0, atol=1e-4)
    first = ranks[0][0][0]
    assert first.token_ids == [greedy_reference(model, p, 1)[0] for p in prompts.values()]
    assert [s.token_id for s in first.prompt_logprobs[1]] == prompts[1][1:]
    for results, _ in ranks[1:]:
        assert results[0].token_ids == [] and results[0].logprobs is None
        assert not any(results[0].prompt_logprobs.values())


def test_length_is_the_models_and_at_most_the_configured_one(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())
    assert make_runner(tmp_path).max_model_len == 256
    assert make_runner(tmp_path, max_model_len=100).max_model_len == 100
    with pytest.raises(InvalidRequest, match="max_model_len"):
        make_runner(tmp_path, max_model_len=257)


def test_length_nobody_asked_for_shrinks_to_the_agreed_cache(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())
    runner = make_runner(tmp_path)
    runner.allocate_kv_cache(10)  # another rank had room for no more
    assert runner.max_model_len == 40


def test_cache_smaller_than_the_asked_length_is_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())
    runner = make_runner(tmp_path, max_model_len=200)
    with pytest.raises(MemoryPlanError, match="200 tokens"):
        runner.allocate_kv_cache(10)


def test_sequence_of_the_greatest_length_computes(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path, llama_config())
    runner = make_runner(tmp_path, max_model_len=61)  # not a multiple of the block size
    driver = driver_for(runner)
    text = random_tokens(61, seed=9)
    driver.admit(0, text[:60])
    run(runner, driver, (0, 60))
    driver.tokens[0][60:] = text[60:]
    logits = runner.compute_logits(driver.plan((0, 1)))
    torch.testing.assert_close(logits[0], reference_logits(model, text)[-1], rtol=0, atol=1e-4)


def test_full_batch_uses_every_slot(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())
    runner = make_runner(tmp_path, max_num_seqs=8)
    driver = driver_for(runner)
    for slot in range(8):
        driver.admit(slot, random_tokens(3 + slot, seed=slot))
    result = run(runner, driver, *((slot, 3 + slot) for slot in range(8)))
    assert len(result.token_ids) == 8


def test_empty_plan_is_a_no_op(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())
    plan = StepPlan(step=1, token_ids=[], sequences=[])
    assert make_runner(tmp_path).execute(plan).token_ids == []


def test_device_and_threads_resolve() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    gib = 1 << 30
    assert default_num_threads(1, gib) >= default_num_threads(2, gib) >= 1
    assert default_num_threads(10_000, gib) == 1


def test_small_model_takes_one_thread() -> None:
    assert default_num_threads(1, 1 << 20) == 1


def test_freed_memory_stays_with_the_process() -> None:
    """In a process of its own: the setting cannot be taken back."""
    code = (
        "import resource, torch; from worker.runner.allocator import keep_freed_memory\n"
        "print(keep_freed_memory())\n"
        "torch.set_num_threads(1)\n"
        "def step():\n"
        "    parts = [torch.ones(1 << 18) for _ in range(12)]\n"
        "    return sum(len(part) for part in parts)\n"
        "for _ in range(20): step()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(20): step()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    has_mallopt, faults = done.stdout.split()
    if has_mallopt == "False":
        pytest.skip("not glibc")
    assert int(faults) < 1000, "20 steps of 12 MiB are 60,000 pages when each is mapped anew"
