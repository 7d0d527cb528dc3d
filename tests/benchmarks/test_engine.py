"""The engine's benchmark measures what it says: on a small shape, through its command line."""

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import engine
from benchmarks.closed_loop import ClosedLoop
from benchmarks.device_idle import idle_share
from benchmarks.in_process import engine_config, loaded_runner, model_directory
from benchmarks.limits import Limits
from benchmarks.load import Load
from benchmarks.shapes import SHAPES
from benchmarks.step_parts import PARTS, TimedRunner, timed_executor
from benchmarks.step_summary import summarize_steps
from benchmarks.transformers_peer import measure_transformers
from worker.config import RunnerConfig
from worker.engine.sampling_params import SamplingParams
from worker.engine.step import AdmittedSequence, ScheduledSequence, StepPlan


def make_loop(folder: Path, looks_ahead: bool = False) -> ClosedLoop:
    config = RunnerConfig(
        str(folder),
        dtype="bfloat16",
        device="cpu",
        max_model_len=64,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        num_threads=1,
        async_scheduling=looks_ahead,
    )
    runner = loaded_runner(TimedRunner, "tiny", config)
    runner.allocate_kv_cache(32)
    return ClosedLoop(engine_config(runner, config, 32), timed_executor(runner))


@pytest.mark.parametrize("looks_ahead", [False, True])
def test_every_token_and_every_part_of_a_step_is_counted(looks_ahead: bool) -> None:
    with model_directory("tiny") as folder:
        loop = make_loop(folder, looks_ahead)
        total, steps = loop.run(Load(5, 2, 24, 6, vocab=(4, 4096)))
    assert total.num_tokens == 5 * 6
    assert sum(s.is_sampled for step in steps for s in step.plan.sequences) == 5 * 6
    assert 0 < sum(step.seconds for step in steps) <= total.wall_s
    for step in steps:
        assert all(seconds >= 0 for seconds in step.parts_s)
        assert math.isclose(sum(step.parts_s), step.seconds, rel_tol=1e-6)
    loop.engine.check_integrity()
    assert not loop.engine.has_work


def test_summaries_tell_prompts_from_decodes() -> None:
    with model_directory("tiny") as folder:
        _, steps = make_loop(folder).run(Load(2, 1, 24, 6, vocab=(4, 4096)))
    decode, prompt = summarize_steps(steps, None, None)
    assert (decode.kind, decode.num_steps) == ("decode", 2 * 5)
    assert (prompt.kind, prompt.num_steps) == ("prompt", 2)
    assert list(decode.parts_s) == list(PARTS)
    assert math.isclose(sum(decode.shares.values()), 1, rel_tol=1e-6)


@pytest.mark.parametrize("looks_ahead", [False, True])
def test_what_decodes_can_be_ended(looks_ahead: bool) -> None:
    with model_directory("tiny") as folder:
        loop = make_loop(folder, looks_ahead)
        loop.start_decoding(Load(2, 2, 24, 30, vocab=(4, 4096)))
        loop.steps(3)
        loop.end()
        assert not loop.engine.has_work
        total, _ = loop.run(Load(2, 2, 24, 4, vocab=(4, 4096), seed=1))
    assert total.num_tokens == 8


def test_a_shapes_weights_are_random_and_on_no_disk() -> None:
    with model_directory("tiny") as folder:
        checkpoint = folder / "model.safetensors"
        assert checkpoint.stat().st_blocks * 512 < checkpoint.stat().st_size / 4
        loop = make_loop(folder)
        plan = StepPlan(
            0,
            [5, 6, 7],
            [ScheduledSequence(0, 0, 3, [0], True)],
            [AdmittedSequence(0, [5, 6, 7], [], SamplingParams(max_tokens=4))],
        )
        logits = loop.executor.runner.compute_logits(plan)
    assert torch.isfinite(logits).all() and logits.std() > 0
    assert not folder.exists()


def test_the_command_line_reports_every_scenario(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    arguments = "tiny --input-len 16 --output-len 4 --concurrency 1 3 --device cpu --limit-s 0"
    assert engine.main([*arguments.split(), "--threads", "1", "--out", str(out)]) == 0
    report = json.loads(out.read_text())["models"]["tiny"]
    assert report["limits"] is None
    assert [s["load"]["concurrency"] for s in report["scenarios"]] == [1, 3]
    for scenario in report["scenarios"]:
        assert scenario["total"]["num_tokens"] == 4 * scenario["load"]["num_requests"]
        assert {steps["kind"] for steps in scenario["steps"]} == {"decode", "prompt"}
    assert capsys.readouterr().out.count("hand-over") == 4


def test_the_gpu_suite_leaves_out_what_it_measures_in_turn() -> None:
    args = engine.parse(["--suite", "gpu", "tiny", "135m"])
    names, loads = engine.work(args)
    jobs = list(engine._jobs(args, names, loads))
    assert [name for _, name, _, _ in jobs] == ["tiny"] * 4 + ["135m"]
    assert [len(its_loads) for _, _, its_loads, _ in jobs] == [4, 2, 2, 2, 4]
    configs = [
        engine.runner_config(Path("m"), its_loads, args, variant)
        for _, _, its_loads, variant in jobs
    ]
    assert [config.enforce_eager for config in configs] == [False, True, False, True, False]
    assert [config.async_scheduling for config in configs] == [None, None, False, None, None]
    assert {config.max_num_batched_tokens for config in configs} == {8192}


@pytest.mark.slow
def test_transformers_answers_the_same_loads() -> None:
    with model_directory("tiny") as folder:
        load = Load(2, 2, 12, 4)
        found = measure_transformers(folder, [load], torch.device("cpu"), torch.float32)[0]
    assert found.get("error") is None
    assert found["tokens_per_s"] > 0


def test_shares_of_the_limit_follow_the_limits() -> None:
    shape = SHAPES["tiny"]
    with model_directory("tiny") as folder:
        _, steps = make_loop(folder).run(Load(2, 1, 24, 6, vocab=(4, 4096)))
    limits = Limits(read_gb_s=40.0, bf16_gflop_s=400.0, num_threads=1)
    slower = Limits(read_gb_s=20.0, bf16_gflop_s=200.0, num_threads=1)
    fast, slow = (summarize_steps(steps, shape, x) for x in (limits, slower))
    for one, other in zip(fast, slow, strict=True):
        assert one.of_limit is not None and one.of_limit > 0
        assert other.of_limit == pytest.approx(2 * one.of_limit)


def test_a_model_that_is_none_is_refused() -> None:
    with pytest.raises(SystemExit, match="none of the shapes"):
        engine.main(["no-such-model"])


def test_suites_name_shapes_and_fit_their_positions() -> None:
    for names, loads in engine.SUITES.values():
        for name in names:
            longest = max(load.input_len + load.output_len for load in loads)
            assert longest <= engine.ALL_SHAPES[name].max_position


def test_idle_is_what_no_interval_covers() -> None:
    assert idle_share([(0.0, 4.0), (2.0, 5.0), (7.0, 10.0), (8.0, 9.0)]) == pytest.approx(0.2)
    assert idle_share([]) is None
