"""Whatever the kernels work with outlives their calls: teams, programs, buffers, several models."""

import gc
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.worker.models.harness import (
    driver_for,
    llama_config,
    make_checkpoint,
    make_runner,
    random_tokens,
)
from tests.worker.native.libraries import VARIANT_NAMES
from worker.native.decoder import NativeDecoder
from worker.native.structs import StepStruct
from worker.runner.model_runner import ModelRunner

pytestmark = pytest.mark.skipif(not VARIANT_NAMES, reason="no kernels for this machine")

TEAM_WITHOUT_THREADS = """
import resource
from worker.native.library import Team, native_library
library = native_library()
num_bytes = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = num_bytes + (64 << 20)  # stacks of a few threads
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    Team(library, 500)
except MemoryError:
    print("no threads")
"""

EXIT_DURING_A_STEP = """
import threading
from tests.worker.native.kernels import make_step
from worker.attention.base import AttentionKind
from worker.native.attention import NativeAttention
from worker.native.library import Team, native_library
library = native_library()
attention = NativeAttention(library, Team(library, 2))
q, cache, layout = make_step([(1500, 1500)], 8, 2, 64)
plan = attention(layout, AttentionKind())
plan.run(q, q, q, cache)
def run():
    while True:
        plan.run(q, q, q, cache)
threading.Thread(target=run, daemon=True).start()
threading.Event().wait(0.2)
print("leaves")
"""


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    configs = [
        llama_config(hidden_size=48, intermediate_size=100),
        llama_config(num_attention_heads=6, num_key_value_heads=3, head_dim=20, hidden_size=72),
    ]
    found = [tmp_path_factory.mktemp(f"model{i}") for i in range(len(configs))]
    for path, config in zip(found, configs, strict=True):
        make_checkpoint(path, config)
    return found


def prompt_logits(runner: ModelRunner, num_tokens: int) -> Tensor:
    """Of a prompt's end; its slot is free again afterwards."""
    driver = driver_for(runner)
    driver.admit(0, random_tokens(num_tokens, seed=num_tokens))
    logits = runner.compute_logits(driver.plan((0, num_tokens))).clone()
    driver.release(0)
    runner.execute(driver.plan())
    return logits


def run_script(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("script", "said"), [(TEAM_WITHOUT_THREADS, "no threads\n"), (EXIT_DURING_A_STEP, "leaves\n")]
)
def test_process_ends_as_it_should(script: str, said: str) -> None:
    done = run_script(script)
    assert (done.returncode, done.stdout) == (0, said), done.stderr


def test_step_runs_after_one_that_had_no_memory(paths: list[Path]) -> None:
    runner = make_runner(paths[0])
    before = prompt_logits(runner, 60)
    model = runner._model
    assert isinstance(model, NativeDecoder)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (1 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        step = StepStruct(num_tokens=100_000_000, num_sequences=0)
        assert not model._library.shoal_begin_step(model._program, step)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert torch.equal(prompt_logits(runner, 60), before)


def test_torchs_default_type_does_not_matter(paths: list[Path]) -> None:
    """Others in the process set it while they load models of their own."""
    wanted = prompt_logits(make_runner(paths[0]), 60)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = prompt_logits(make_runner(paths[0]), 60)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found, wanted)


def test_logits_of_more_rows_than_the_step_had_are_refused(paths: list[Path]) -> None:
    runner = make_runner(paths[0])
    prompt_logits(runner, 9)
    assert isinstance(runner._model, NativeDecoder)
    with pytest.raises(AssertionError, match="no more rows"):
        runner._model.logits(torch.zeros(10, 48))


def test_models_of_several_threads_come_and_go(paths: list[Path]) -> None:
    lengths = (1, 5, 130, 33)
    settings = [{"dtype": "float32", "num_threads": 1}, {"dtype": "bfloat16", "num_threads": 2}]
    num_threads = torch.get_num_threads()
    jobs = [(path, kind) for path in paths for kind in settings]
    wanted = [
        [prompt_logits(runner, length) for length in lengths]
        for runner in (make_runner(path, **kind) for path, kind in jobs)
    ]
    differing: list[int] = []

    def work(first: int) -> None:
        for i in range(first, first + len(jobs)):
            job = i % len(jobs)
            path, kind = jobs[job]
            runner = make_runner(path, **kind)
            found = [prompt_logits(runner, length) for length in lengths]
            del runner
            gc.collect()
            if not all(map(torch.equal, found, wanted[job])):
                differing.append(job)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    torch.set_num_threads(num_threads)
    assert not any(thread.is_alive() for thread in threads)
    assert not differing
