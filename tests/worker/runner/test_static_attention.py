"""Captured decode steps over the Triton backend's plans in fixed memory: the seam of both.

In the interpreter without a GPU, where the record is pretended.
"""

from tests.worker.interpreted import DEVICE, runs_kernels

# isort: split
from pathlib import Path
from typing import Any

import pytest

from tests.worker.models.harness import llama_config, make_checkpoint
from tests.worker.models.test_families_moe import make_config as moe_config
from tests.worker.models.test_families_rms import make_config as rms_config
from tests.worker.runner.generation import generate, requests
from tests.worker.runner.pretended_graphs import FakeCapturer
from worker.attention.registry import attention_backend
from worker.config import RunnerConfig
from worker.engine.sampling_params import SamplingParams
from worker.parallel.async_executor import AsyncLocalExecutor
from worker.parallel.group import SingleGroup
from worker.parallel.tp_executor import LocalExecutor
from worker.runner.cuda_graphs import GraphParts, static_maker
from worker.runner.model_runner import ModelRunner

pytestmark = runs_kernels


def make_runner(path: Path, backend: str, parts: GraphParts | None) -> ModelRunner:
    config = RunnerConfig(
        str(path),
        dtype="float32",
        device=str(DEVICE),
        block_size=4,
        num_blocks=64,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        native_kernels=False,
        enforce_eager=parts is None,
        attention_backend=backend,
    )
    runner = ModelRunner(config, SingleGroup(), DEVICE, parts=parts)
    runner.load()
    runner.allocate_kv_cache(runner.plan_num_blocks())
    return runner


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(lambda: llama_config(), id="Llama"),
        pytest.param(lambda: rms_config("Gemma 2"), id="windows and soft caps"),
        pytest.param(lambda: moe_config("DeepSeek V3"), id="latent attention and experts"),
    ],
)
def test_decodes_in_fixed_memory_bring_the_same_tokens(tmp_path: Path, config: Any) -> None:
    make_checkpoint(tmp_path, config())
    asked = requests([SamplingParams(4, temperature=0.0)] * 3)
    plain = make_runner(tmp_path, "gathered", None)
    expected = generate(plain, LocalExecutor(plain), asked)
    maker = static_maker(attention_backend("triton", DEVICE))
    assert maker is not None
    capturer = FakeCapturer()
    captured = make_runner(tmp_path, "triton", GraphParts(maker, capturer))
    assert generate(captured, AsyncLocalExecutor(captured), asked) == expected
    assert capturer.num_replays >= 1
