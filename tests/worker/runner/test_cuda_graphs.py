"""Captured decode steps against uncaptured ones, over families; the device's part is pretended."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.models.harness import (
    PlanDriver,
    driver_for,
    llama_config,
    make_checkpoint,
    random_tokens,
)
from tests.worker.models.test_families_classic import ROWS as CLASSIC_ROWS
from tests.worker.models.test_families_classic import make_config as classic_config
from tests.worker.models.test_families_moe import make_config as moe_config
from tests.worker.models.test_families_rms import make_config as rms_config
from tests.worker.runner.generation import CountedExecutor, generate, requests
from tests.worker.runner.pretended_graphs import FakeCapturer, pretended_parts
from tests.worker.simulated_group import run_ranks
from worker.config import RunnerConfig
from worker.engine.sampling_params import SamplingParams
from worker.parallel.group import SingleGroup, TPGroup
from worker.parallel.tp_executor import LocalExecutor
from worker.runner.cuda_graphs import padded_sizes
from worker.runner.model_runner import ModelRunner

MIXED = (
    SamplingParams(12, temperature=0.0),
    SamplingParams(9, temperature=0.8),
    SamplingParams(14, temperature=0.9, top_k=7, top_p=0.9),
    SamplingParams(30, temperature=0.0, stop_token_ids=tuple(range(0, 99, 4))),
    SamplingParams(8, temperature=0.0, logprobs=2, presence_penalty=0.4),
)


def make_runner(
    path: Path, capturer: FakeCapturer | None, tp: TPGroup | None = None, **overrides: Any
) -> ModelRunner:
    """On torch's operators; captured where there is a capturer."""
    settings: dict[str, Any] = {
        "dtype": "float32",
        "device": "cpu",
        "block_size": 4,
        "num_blocks": 256,
        "max_num_seqs": 20,
        "max_num_batched_tokens": 512,
        "native_kernels": False,
        **overrides,
    }
    parts = None if capturer is None else pretended_parts(capturer)
    runner = ModelRunner(RunnerConfig(str(path), **settings), tp or SingleGroup(), parts=parts)
    runner.load()
    runner.allocate_kv_cache(runner.plan_num_blocks())
    return runner


def compute(runner: ModelRunner, driver: PlanDriver, num_seqs: int) -> torch.Tensor:
    """Prompts of `num_seqs` sequences, then the logits of one decode of each."""
    for slot in range(num_seqs):
        driver.admit(slot, random_tokens(3 + slot, seed=slot))
    runner.execute(driver.plan(*((slot, 3 + slot) for slot in range(num_seqs))))
    for slot in range(num_seqs):
        driver.tokens[slot].append(slot + 1)
    return runner.compute_logits(driver.plan(*((slot, 1) for slot in range(num_seqs)))).clone()


@pytest.mark.parametrize(
    ("most", "sizes"),
    [
        (1, [1]),
        (2, [1, 2]),
        (3, [1, 2, 3]),
        (4, [1, 2, 4]),
        (5, [1, 2, 4, 8]),
        (8, [1, 2, 4, 8]),
        (20, [1, 2, 4, 8, 16, 24]),
        (5000, [1, 2, 4, *range(8, 513, 8)]),
    ],
)
def test_batches_are_padded_to_few_sizes(most: int, sizes: list[int]) -> None:
    assert padded_sizes(most) == sizes


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(lambda: llama_config(), id="Llama"),
        pytest.param(lambda: rms_config("Gemma 2"), id="windows and soft caps"),
        pytest.param(lambda: moe_config("gpt-oss"), id="experts, windows and sinks"),
        pytest.param(lambda: moe_config("Mixtral with a window"), id="experts and a window"),
        pytest.param(lambda: moe_config("DeepSeek V3"), id="latent attention and experts"),
        pytest.param(lambda: classic_config(*CLASSIC_ROWS["MPT"][:2]), id="ALiBi"),
    ],
)
def test_families_bring_the_same_tokens(tmp_path: Path, config: Any) -> None:
    make_checkpoint(tmp_path, config())
    asked = requests(MIXED)
    plain = make_runner(tmp_path, None)
    expected = generate(plain, LocalExecutor(plain), asked)
    capturer = FakeCapturer()
    captured = make_runner(tmp_path, capturer)
    assert generate(captured, CountedExecutor(captured), asked) == expected
    assert capturer.num_replays > 5
    assert len(capturer.sizes) == len(set(capturer.sizes)) > 1


@pytest.mark.parametrize("num_seqs", [1, 3, 5, 17])
def test_padding_changes_no_logits(tmp_path: Path, num_seqs: int) -> None:
    make_checkpoint(tmp_path, llama_config())
    plain = make_runner(tmp_path, None)
    expected = compute(plain, driver_for(plain), num_seqs)
    captured = make_runner(tmp_path, FakeCapturer())
    driver = driver_for(captured)
    first = compute(captured, driver, num_seqs)
    torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-5)
    driver.computed = {slot: 3 + slot for slot in range(num_seqs)}
    replayed = captured.compute_logits(driver.plan(*((slot, 1) for slot in range(num_seqs))))
    torch.testing.assert_close(replayed, expected, rtol=1e-5, atol=1e-5)


def test_rows_of_padding_write_to_nobodys_block(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())
    runner = make_runner(tmp_path, FakeCapturer())
    driver = driver_for(runner)
    compute(runner, driver, 9)
    driver.computed[0] = 3
    before = [cache.k.clone() for cache in runner._kv_caches]
    runner.compute_logits(driver.plan((0, 1)))
    compute_three = {slot: 3 + slot for slot in range(3)}
    driver.computed |= compute_three
    runner.compute_logits(driver.plan((0, 1), (1, 1), (2, 1)))
    for cache, earlier in zip(runner._kv_caches, before, strict=True):
        assert len(cache.k) == runner.memory_plan.num_blocks + 1
        torch.testing.assert_close(cache.k[:-1], earlier[:-1])


def test_steps_that_are_not_only_decodes_run_uncaptured(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())
    capturer = FakeCapturer()
    runner = make_runner(tmp_path, capturer)
    driver = driver_for(runner)
    driver.admit(0, random_tokens(9, seed=0))
    driver.admit(1, random_tokens(9, seed=1))
    runner.execute(driver.plan((0, 9)))
    driver.tokens[0].append(1)
    runner.execute(driver.plan((0, 1), (1, 9)))
    runner.execute(driver.plan())
    assert capturer.sizes == []
    driver.tokens[0].append(2)
    runner.execute(driver.plan((0, 1)))
    assert capturer.sizes == [1]


def test_without_memory_left_for_graphs_steps_run_as_they_are(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())
    asked = requests(MIXED)
    plain = make_runner(tmp_path, None)
    capturer = FakeCapturer(bytes_each=100)
    captured = make_runner(tmp_path, capturer)
    assert captured._graphs is not None
    captured._graphs.bind(captured._kv_caches, 256 * 4, budget_bytes=199)
    expected = generate(plain, LocalExecutor(plain), asked)
    assert generate(captured, LocalExecutor(captured), asked) == expected
    assert len(capturer.sizes) == 1


def test_what_cannot_be_captured_runs_as_it_is(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())
    asked = requests(MIXED[:3])
    plain = make_runner(tmp_path, None)
    captured = make_runner(tmp_path, FakeCapturer(refuses=True))
    expected = generate(plain, LocalExecutor(plain), asked)
    assert generate(captured, LocalExecutor(captured), asked) == expected


def test_all_sizes_can_be_captured_before_the_first_step(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())
    asked = requests(MIXED)
    plain = make_runner(tmp_path, None)
    expected = generate(plain, LocalExecutor(plain), asked)
    capturer = FakeCapturer()
    captured = make_runner(tmp_path, capturer)
    captured.capture_decodes()
    assert capturer.sizes == [24, 16, 8, 4, 2, 1]
    assert generate(captured, LocalExecutor(captured), asked) == expected
    assert capturer.sizes == [24, 16, 8, 4, 2, 1]


def test_graphs_can_be_declined(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())
    assert make_runner(tmp_path, FakeCapturer(), enforce_eager=True)._graphs is None
    assert make_runner(tmp_path, None)._graphs is None


def test_ranks_capture_together(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())
    plain = make_runner(tmp_path, None)
    expected = compute(plain, driver_for(plain), 5)
    capturers = [FakeCapturer(), FakeCapturer()]

    def body(group: TPGroup) -> torch.Tensor:
        runner = make_runner(tmp_path, capturers[group.rank], group)
        return compute(runner, driver_for(runner), 5)

    for logits in run_ranks(2, body):
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert capturers[0].sizes == capturers[1].sizes == [8]


def test_a_rank_that_cannot_capture_stops_the_others_and_none_waits(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())
    plain = make_runner(tmp_path, None)
    expected = [compute(plain, driver_for(plain), count) for count in (5, 9)]
    capturers = [FakeCapturer(), FakeCapturer(refuses=True)]

    def body(group: TPGroup) -> list[torch.Tensor]:
        found = []
        runner = make_runner(tmp_path, capturers[group.rank], group)
        for count in (5, 9):
            driver = driver_for(runner)
            found.append(compute(runner, driver, count))
            for slot in range(count):
                driver.release(slot)
            runner.execute(driver.plan())
        return found

    for logits in run_ranks(2, body):
        for mine, wanted in zip(logits, expected, strict=True):
            torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4)
    assert (capturers[0].sizes, capturers[1].sizes) == ([8], [])
