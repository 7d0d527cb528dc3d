"""The KV cache gets what the greatest steps leave of a card: the arithmetic over a pretended one,
and the steps themselves over a real runner.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.models.harness import driver_for, llama_config, make_checkpoint, random_tokens
from tests.worker.simulated_group import run_ranks
from worker.config import RunnerConfig
from worker.engine.step import StepPlan
from worker.errors import MemoryPlanError
from worker.kv_groups import group_layers
from worker.memory_plan import MemoryPlan
from worker.parallel.group import SingleGroup, TPGroup
from worker.runner.memory_profile import (
    MemoryProfile,
    describe,
    fitted_plan,
    graph_margin_bytes,
    greatest_step,
    measure_memory,
)
from worker.runner.model_runner import ModelRunner

MIB = 1 << 20


class FakeProbe:
    """A card of `total` bytes: `weights` are held, libraries took `other`; steps peak as told."""

    def __init__(self, total: int, weights: int, other: int, peaks: list[int]) -> None:
        self.free_at_start = total
        self.trims = 0
        self._weights, self._other, self._peaks = weights, other, list(peaks)

    def free(self) -> int:
        return self.free_at_start - self.reserved() - self._other

    def held(self) -> int:
        return self._weights

    def reserved(self) -> int:
        return self._weights + 2 * MIB

    def begin_peak(self) -> None:
        self._peak = self._weights + self._peaks.pop(0)

    def peak(self) -> int:
        return self._peak

    def trim(self) -> None:
        self.trims += 1


def nothing() -> None:
    return None


def plan(budget: int, block_bytes: int = MIB) -> MemoryPlan:
    groups = group_layers((None,), 64)
    return MemoryPlan(
        "m", "cuda", "bfloat16", 1, budget, 1, 1, block_bytes, 16, 7, "a guess", 64, groups
    )


def config(**fields: Any) -> RunnerConfig:
    return RunnerConfig("m", **fields)


def test_activations_are_the_greater_step_and_graphs_keep_the_last_ones_scratch() -> None:
    probe = FakeProbe(1000 * MIB, 300 * MIB, 20 * MIB, [90 * MIB, 10 * MIB])
    profile = measure_memory(probe, [nothing, nothing], graph_margin_bytes=5 * MIB)
    assert profile == MemoryProfile(300 * MIB, 90 * MIB, 15 * MIB, 20 * MIB)
    assert probe.trims == 1


def test_without_graphs_nothing_is_set_aside_for_them() -> None:
    probe = FakeProbe(1000 * MIB, 300 * MIB, 0, [90 * MIB, 10 * MIB])
    assert measure_memory(probe, [nothing, nothing], 0).graph_bytes == 0


def test_the_cache_gets_whole_blocks_of_what_is_left() -> None:
    profile = MemoryProfile(300 * MIB, 90 * MIB, 15 * MIB, 20 * MIB)
    fitted = fitted_plan(plan(500 * MIB + 123), profile, config())
    assert fitted.num_blocks == 75
    assert fitted.weight_bytes + fitted.activation_bytes + fitted.kv_cache_bytes <= 500 * MIB
    line = describe(fitted, profile, fitted.num_blocks)
    assert line.startswith("measured, GiB of 0.49: weights 0.29, activations 0.09, graphs 0.01")
    assert line.endswith("KV cache 0.07, spare 0.00")


@pytest.mark.parametrize("left", [-1, 0, MIB - 1])
def test_nothing_left_is_an_error_that_names_the_flags(left: int) -> None:
    profile = MemoryProfile(300 * MIB, 90 * MIB, 0, 0)
    with pytest.raises(MemoryPlanError, match="nothing is left") as error:
        fitted_plan(plan(390 * MIB + left), profile, config())
    for flag in ("--gpu-memory-utilization", "--max-num-batched-tokens", "--max-num-seqs"):
        assert flag in str(error.value)


@pytest.mark.parametrize(
    ("fields", "flag"),
    [
        ({"num_blocks": 11}, "--num-gpu-blocks-override"),
        ({"kv_cache_bytes": 11 * MIB}, "--kv-cache-memory-bytes"),
    ],
)
def test_what_was_asked_for_is_taken_if_it_fits(fields: dict[str, int], flag: str) -> None:
    profile = MemoryProfile(300 * MIB, 90 * MIB, 0, 0)
    fitted = fitted_plan(plan(401 * MIB), profile, config(**fields))
    assert (fitted.num_blocks, fitted.bound) == (11, flag)
    with pytest.raises(MemoryPlanError, match=f"{flag} asks for 11 KV blocks, but 10 fit"):
        fitted_plan(plan(401 * MIB - 1), profile, config(**fields))


def test_a_step_that_does_not_fit_is_an_error_that_names_the_flags() -> None:
    def step() -> None:
        raise torch.OutOfMemoryError("no 3 GiB")

    probe = FakeProbe(1000 * MIB, 300 * MIB, 0, [0])
    with pytest.raises(MemoryPlanError, match=r"no 3 GiB; raise --gpu-memory-utilization"):
        measure_memory(probe, [step], 0)


def test_graphs_take_more_with_more_layers_and_sizes() -> None:
    assert graph_margin_bytes(32, 35) == 2 * graph_margin_bytes(16, 35) > 0
    assert graph_margin_bytes(32, 0) == 0


@pytest.mark.parametrize(
    ("num_seqs", "budget", "max_len", "lens"),
    [
        (4, 16, 64, [13, 1, 1, 1]),
        (4, 16, 8, [8, 6, 1, 1]),
        (4, 3, 64, [1, 1, 1]),
        (2, 100, 8, [8, 8]),
        (3, 3, 1, [1, 1, 1]),
    ],
)
def test_the_greatest_step_is_full_and_at_the_end_of_the_longest_context(
    num_seqs: int, budget: int, max_len: int, lens: list[int]
) -> None:
    step = greatest_step(config(max_num_seqs=num_seqs), max_len, budget)
    assert [s.num_tokens for s in step.sequences] == lens
    assert len(step.token_ids) == sum(lens)
    assert all(s.start + s.num_tokens == max_len for s in step.sequences)
    assert all(s.is_sampled for s in step.sequences)


def test_a_runner_measures_once_before_its_cache_and_serves_as_ever(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())
    computed: list[StepPlan] = []

    class Watched(ModelRunner):
        def execute(self, plan: StepPlan):  # type: ignore[no-untyped-def]
            computed.append(plan)
            return super().execute(plan)

    def runner(make: Callable[..., ModelRunner], probe: FakeProbe | None) -> ModelRunner:
        settings = RunnerConfig(
            str(tmp_path),
            dtype="float32",
            device="cpu",
            block_size=4,
            num_blocks=40,
            max_num_seqs=3,
            max_num_batched_tokens=20,
            native_kernels=False,
        )
        made = make(settings, SingleGroup(), probe=probe)
        made.load()
        made.allocate_kv_cache(made.plan_num_blocks())
        return made

    probe = FakeProbe(4 << 30, 10 * MIB, 0, [2 * MIB, MIB])
    measured = runner(Watched, probe)
    assert [len(step.token_ids) for step in computed] == [20, 3]
    assert measured.plan_num_blocks() == 40
    assert len(computed) == 2
    assert measured.memory_plan.weight_bytes == 10 * MIB
    assert measured.memory_use.startswith("measured, GiB of")
    results = []
    for one in (measured, runner(ModelRunner, None)):
        driver = driver_for(one)
        driver.admit(0, random_tokens(9, seed=0))
        results.append(one.execute(driver.plan((0, 9))).token_ids)
    assert results[0] == results[1]


def test_ranks_with_unequal_memory_measure_the_same_steps(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())
    computed: dict[int, list[StepPlan]] = {0: [], 1: []}

    def body(group: TPGroup) -> None:
        class Watched(ModelRunner):
            def execute(self, plan: StepPlan):  # type: ignore[no-untyped-def]
                computed[group.rank].append(plan)
                return super().execute(plan)

        settings = RunnerConfig(
            str(tmp_path),
            dtype="float32",
            device="cpu",
            block_size=4,
            num_blocks=40,
            max_num_seqs=3,
            max_num_batched_tokens=30,
            native_kernels=False,
        )
        runner = Watched(settings, group, probe=FakeProbe(4 << 30, MIB, 0, [MIB, MIB]))
        few_blocks = (3 + 2 * group.rank) * runner.memory_plan.block_bytes
        runner.memory_plan = replace(runner.memory_plan, budget_bytes=few_blocks)
        runner.load()
        with pytest.raises(MemoryPlanError):  # of so little memory nothing is left
            runner.plan_num_blocks()

    run_ranks(2, body)
    assert computed[0] == computed[1]
    assert [len(step.token_ids) for step in computed[0]] == [30, 3]
    assert max(s.start + s.num_tokens for s in computed[0][0].sequences) == 12
