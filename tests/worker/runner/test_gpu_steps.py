"""Steps on a real card: captured and planned ahead, against plain ones; memory as measured."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.models.harness import llama_config, make_checkpoint
from tests.worker.models.test_families_classic import ROWS as CLASSIC_ROWS
from tests.worker.models.test_families_classic import make_config as classic_config
from tests.worker.models.test_families_moe import make_config as moe_config
from tests.worker.models.test_families_rms import make_config as rms_config
from tests.worker.runner.generation import CountedExecutor, generate, requests
from worker.config import RunnerConfig
from worker.engine.sampling_params import SamplingParams
from worker.engine.step import AdmittedSequence, StepPlan
from worker.errors import MemoryPlanError, ShardError
from worker.parallel.group import SingleGroup
from worker.parallel.tp_executor import LocalExecutor
from worker.runner.drawing import choose_unseen
from worker.runner.logit_edits import SlotState
from worker.runner.model_runner import ModelRunner
from worker.runner.pending_step import PendingStep

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GREEDY = SamplingParams(12, temperature=0.0)
DRAWN = (
    SamplingParams(9, temperature=0.8),
    SamplingParams(11, temperature=1.0, min_p=0.05),
    SamplingParams(14, temperature=0.9, top_k=7, top_p=0.9),
)


def make_runner(path: Path, device: str = "cuda", **overrides: Any) -> ModelRunner:
    settings: dict[str, Any] = {
        "dtype": "float32",
        "device": device,
        "block_size": 4,
        "num_blocks": 256,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 512,
        "native_kernels": False,
        **overrides,
    }
    runner = ModelRunner(RunnerConfig(str(path), **settings), SingleGroup())
    runner.load()
    runner.allocate_kv_cache(runner.plan_num_blocks())
    return runner


@pytest.fixture(autouse=True)
def _exact_products() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(lambda: llama_config(), id="Llama"),
        pytest.param(lambda: rms_config("Gemma 2"), id="windows and soft caps"),
        pytest.param(lambda: moe_config("gpt-oss"), id="experts, windows and sinks"),
        pytest.param(lambda: moe_config("Mixtral"), id="experts"),
        pytest.param(lambda: moe_config("DeepSeek V3"), id="latent attention and experts"),
        pytest.param(lambda: classic_config(*CLASSIC_ROWS["MPT"][:2]), id="ALiBi"),
    ],
)
def test_families_bring_the_tokens_of_a_cpu(tmp_path: Path, config: Any) -> None:
    make_checkpoint(tmp_path, config())
    asked = requests([GREEDY] * 6)
    on_cpu = make_runner(tmp_path, "cpu")
    expected = generate(on_cpu, LocalExecutor(on_cpu), asked)
    plain = make_runner(tmp_path, enforce_eager=True)
    assert generate(plain, LocalExecutor(plain), asked) == expected
    captured = make_runner(tmp_path)
    assert captured._graphs is not None and captured.is_asynchronous
    executor = CountedExecutor(captured)
    assert generate(captured, executor, asked) == expected
    assert executor.num_submitted > 10
    assert captured._graphs._is_capturing and len(captured._graphs._graphs) > 1


def test_draws_are_those_of_plain_steps(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())
    asked = requests([*DRAWN, *DRAWN])
    plain = make_runner(tmp_path, enforce_eager=True)
    expected = generate(plain, LocalExecutor(plain), asked)
    captured = make_runner(tmp_path)
    assert generate(captured, CountedExecutor(captured), asked) == expected


def test_steps_planned_ahead_wait_for_nothing(tmp_path: Path) -> None:
    """While a step is submitted, no operator synchronizes with the device."""
    make_checkpoint(tmp_path, llama_config())
    runner = make_runner(tmp_path)
    executor = CountedExecutor(runner)
    asked = requests([GREEDY, SamplingParams(12, temperature=0.7)])
    generate(runner, executor, asked)  # captures

    def submit(plan: StepPlan) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return CountedExecutor.submit(executor, plan)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    executor.submit = submit  # type: ignore[method-assign]
    generate(runner, executor, asked)


@pytest.mark.parametrize("sampling", [GREEDY, *DRAWN])
def test_choices_are_those_of_a_cpu(sampling: SamplingParams) -> None:
    torch.manual_seed(3)
    logits = torch.randn(40, 700) * 3
    logits[3, 5] = torch.nan
    logits[4] = -torch.inf
    states = [SlotState(AdmittedSequence(i, [1], [2] * i, sampling), 700) for i in range(40)]
    expected = choose_unseen(logits, states).tolist()
    assert choose_unseen(logits.cuda(), states).tolist() == expected


def test_a_step_that_is_never_done_ends_at_its_deadline() -> None:
    state = SlotState(AdmittedSequence(0, [1], [], GREEDY), 700)
    torch.cuda._sleep(1 << 31)
    device = torch.device("cuda")
    for pending in (
        PendingStep(device, torch.zeros(1, dtype=torch.int64, device=device), [state]),
        PendingStep(device),  # nobody runs ahead of prompts without measure either
    ):
        with pytest.raises(ShardError, match="not done within"):
            pending.result(timeout_s=0.01)
    torch.cuda.synchronize()


def test_memory_is_measured_and_never_more_than_allowed(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, llama_config())
    free, total = torch.cuda.mem_get_info()
    share = 1 - free / total + (2 << 30) / total  # 2 GiB more than is taken by now
    runner = make_runner(tmp_path, num_blocks=None, memory_utilization=share)
    asked = requests([GREEDY] * 6)
    generate(runner, CountedExecutor(runner), asked)
    assert free - torch.cuda.mem_get_info()[0] <= (2 << 30) + (64 << 20)
    assert runner.memory_use.startswith("measured")
    assert runner.memory_plan.kv_cache_bytes > 1 << 30
    with pytest.raises(MemoryPlanError, match="num-gpu-blocks-override"):
        make_runner(tmp_path, num_blocks=1 << 30, memory_utilization=share)
