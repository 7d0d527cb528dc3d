"""GPUs as the driver lists them, and the memory plan that is told from it."""

import sys
from pathlib import Path

import pytest

from cluster.cli import parse
from cluster.cli_errors import CommandError
from cluster.config import DeploymentSpec
from cluster.hardware import count_gpus, free_gpu_bytes
from cluster.memory import memory_plan
from cluster.options import serve_options
from worker.demo import demo_model_path


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    for index in range(4):
        (tmp_path / f"0000:0{index}:00.0").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("env", "count"),
    [
        ({}, 4),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, 2),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 0),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5"}, 4),
    ],
)
def test_visible_gpus_are_counted(env: dict[str, str], count: int, driver: Path) -> None:
    assert count_gpus(env, driver) == count


def test_without_a_driver_there_is_no_gpu(tmp_path: Path) -> None:
    assert count_gpus({"CUDA_VISIBLE_DEVICES": "0"}, tmp_path / "none") == 0


def test_fullest_gpu_bounds_the_free_memory() -> None:
    assert free_gpu_bytes((sys.executable, "-c", "print(81000); print(1000)")) == 1000 * 2**20


@pytest.mark.parametrize("code", ["print('N/A')", "raise SystemExit(9)", "pass"])
def test_driver_that_does_not_say(code: str) -> None:
    assert free_gpu_bytes((sys.executable, "-c", code)) is None
    assert free_gpu_bytes(("/no/such/command",)) is None


def spec(*argv: str, path: str = "") -> DeploymentSpec:
    options = serve_options(parse(["serve", *argv]), {})
    return options.deployment(path or str(demo_model_path()), ("demo",), "cpu", 2)


def test_steps_on_gpus_can_be_taken_one_by_one() -> None:
    usual = spec().runner
    assert (usual.enforce_eager, usual.async_scheduling) == (False, None)
    plain = spec("--enforce-eager", "--no-async-scheduling").runner
    assert (plain.enforce_eager, plain.async_scheduling) == (True, False)


def test_plan_of_the_demo_is_told_before_loading() -> None:
    text = memory_plan(spec("--num-gpu-blocks-override", "123"), is_local=True)
    assert "2 ranks" in text and "weights" in text and "123 blocks" in text


def test_plan_of_other_machines_is_theirs() -> None:
    assert "each shard" in memory_plan(spec(), is_local=False)


def test_model_that_does_not_fit_is_refused_with_the_plan() -> None:
    with pytest.raises(CommandError, match="does not fit"):
        memory_plan(spec("--kv-cache-memory-bytes", "1k"), is_local=True)


def test_model_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CommandError, match=r"config\.json"):
        memory_plan(spec(path=str(tmp_path)), is_local=True)
