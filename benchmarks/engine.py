"""The engine by itself: scheduler, model runner and sampler in this process, no Ray, no gateway.

    python -m benchmarks.engine 135m --input-len 128 --output-len 128 --concurrency 1 8 32
    python -m benchmarks.engine --suite gpu --out FILE       # or: cpu

A model is a directory, or a shape of `shapes.py` with random weights that are on no disk. Printed
for each scenario: output tokens/s, TTFT and ITL, and for each kind of steps how long they take, of
what parts, and which share that is of the machine's limit, measured in the same run.
"""

import argparse
import gc
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.closed_loop import ClosedLoop
from benchmarks.device_idle import device_idle_share
from benchmarks.engine_report import Result, print_results
from benchmarks.in_process import (
    ALL_SHAPES,
    engine_config,
    loaded_runner,
    model_directory,
    shape_of,
)
from benchmarks.limits import Limits, best_limits, load_limit, measure_limits
from benchmarks.load import Load, LoadResult
from benchmarks.machine import machine_facts, processor
from benchmarks.shapes import Shape
from benchmarks.step_parts import StepTimes, TimedExecutor, TimedRunner
from benchmarks.step_summary import summarize_steps
from worker.config import RunnerConfig
from worker.errors import ShoalError
from worker.layers.shard import divide_up

_BLOCK_SIZE = 16
# First-use costs are not part of a scenario. Tokens:
_WARM_INPUT = 64
_WARM_OUTPUT = 16
# Beside a scenario's own, so that no prompt is known:
_WARM_SEED = 1_000_003
_IDLE_SEED = 2_000_003
_PROFILED_STEPS = 30

_CPU_LOADS = (
    Load(3, 1, 128, 128),
    Load(64, 8, 128, 128),
    Load(64, 32, 128, 128),
    Load(3, 1, 1500, 16),
    Load(8, 4, 1500, 16),
    Load(32, 8, 1088, 32, shared_prefix_len=1024),
)
_GPU_LOADS = (
    Load(2, 1, 512, 256),
    Load(128, 64, 512, 256),
    Load(512, 256, 512, 256),
    Load(4, 1, 8192, 16),
)
SUITES: dict[str, tuple[tuple[str, ...], tuple[Load, ...]]] = {
    "cpu": (("135m", "0.5b"), _CPU_LOADS),
    "gpu": (("llama-8b", "mpt-7b", "30b-a3b"), _GPU_LOADS),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """One scenario, not yet judged by limits, of which the second half is measured afterwards."""

    load: Load
    total: LoadResult
    steps: list[StepTimes]
    idle_share: float | None


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    names, loads = _work(args)
    report: dict[str, Any] = {"machine": _machine(), "models": {}}
    for name in names:
        try:
            report["models"][name] = measure_model(name, loads, args)
        except (ShoalError, torch.OutOfMemoryError) as error:
            print(f"\n{name}: {error}", flush=True)
            report["models"][name] = {"error": str(error)}
        _release_memory()
        if args.out is not None:
            args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(any("error" in model for model in report["models"].values()))


def measure_model(name: str, loads: Sequence[Load], args: argparse.Namespace) -> dict[str, Any]:
    """Raises: ShoalError when the model cannot be loaded, does not fit, or fails."""
    started_s = time.perf_counter()
    with model_directory(name) as folder:
        config = _runner_config(folder, loads, args)
        runner = loaded_runner(TimedRunner, name, config)
        # What all scenarios need, or what there is: the scheduler then does with less.
        num_blocks = min(runner.plan_num_blocks(), _num_blocks(loads))
        runner.allocate_kv_cache(num_blocks)
        load_s = time.perf_counter() - started_s
        engine = engine_config(runner, config, num_blocks, args.target_itl_ms)
        loop = ClosedLoop(engine, TimedExecutor(runner))
        before = _limits(runner.device, args.limit_s)
        measured = [_measured(loop, load, seed) for seed, load in enumerate(loads)]
        after = _limits(runner.device, args.limit_s)
    limits = best_limits(before, after) if before and after else None
    is_counted = runner.dtype.itemsize == 2  # as the limits count
    shape = shape_of(runner.model_config, runner.spec) if is_counted else None
    results = [_judged(one, shape, limits) for one in measured]
    where = f"{runner.memory_plan.dtype} on {_device_name(runner.device)}"
    print_results(f"{name}: {where}, loaded in {load_s:.1f} s", results, limits)
    return {
        "dtype": runner.memory_plan.dtype,
        "device": _device_name(runner.device),
        "num_threads": torch.get_num_threads(),
        "num_blocks": num_blocks,
        "load_s": load_s,
        "limits": asdict(limits) if limits else None,
        "scenarios": [asdict(result) for result in results],
    }


def _limits(device: torch.device, seconds: float) -> Limits | None:
    if not seconds:
        return None
    return measure_limits(torch.get_num_threads(), seconds, str(device))


def _measured(loop: ClosedLoop, load: Load, seed: int) -> Measured:
    device = loop.executor.runner.device
    # Other prompts each time, or the prefix cache would answer.
    load = replace(load, seed=seed, vocab=(4, loop.config.vocab_size))
    loop.run(_warm_load(load, device))
    total, steps = loop.run(load)
    idle = _idle_share(loop, load) if device.type == "cuda" else None
    return Measured(load, total, steps, idle)


def _warm_load(load: Load, device: torch.device) -> Load:
    """Short on a CPU; on a card whatever is compiled or captured for the scenario's sizes."""
    input_len = load.input_len if device.type == "cuda" else min(load.input_len, _WARM_INPUT)
    return replace(
        load,
        num_requests=min(load.num_requests, load.concurrency),
        input_len=input_len,
        output_len=min(load.output_len, _WARM_OUTPUT),
        shared_prefix_len=0,
        seed=load.seed + _WARM_SEED,
    )


def _idle_share(loop: ClosedLoop, load: Load) -> float | None:
    """While `load.concurrency` requests decode."""
    num_steps = min(_PROFILED_STEPS, load.output_len // 2)
    num_requests = min(load.num_requests, load.concurrency)
    loop.start_decoding(replace(load, num_requests=num_requests, seed=load.seed + _IDLE_SEED))
    share = device_idle_share(lambda: loop.steps(num_steps))
    loop.end()
    return share


def _judged(measured: Measured, shape: Shape | None, limits: Limits | None) -> Result:
    load, total = measured.load, measured.total
    of_limit = None
    if shape is not None and limits is not None:
        of_limit = total.tokens_per_s / load_limit(shape, limits, load)
    in_steps = sum(step.seconds for step in measured.steps)
    return Result(
        load,
        total,
        1 - in_steps / total.wall_s,
        of_limit,
        summarize_steps(measured.steps, shape, limits),
        measured.idle_share,
    )


# --- what to measure ------------------------------------------------------------------------------


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measures the engine in this process.",
        epilog=f"Shapes: {', '.join(ALL_SHAPES)}.",
    )
    add = parser.add_argument
    add("models", nargs="*", metavar="MODEL", help="a directory or a shape; of a suite: its own")
    add("--suite", choices=list(SUITES), help="these models and scenarios")
    add("--input-len", type=_positive, default=128, metavar="N")
    add("--output-len", type=_positive, default=128, metavar="N")
    add("--shared-prefix-len", type=int, default=0, metavar="N", help="of the input")
    add("--concurrency", type=_positive, nargs="+", default=[1, 8, 32], metavar="N")
    add("--requests", type=_positive, metavar="N", help="a scenario (default: 2 x concurrency)")
    add("--dtype", default="bfloat16", choices=("auto", "bfloat16", "float16", "float32"))
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--threads", type=_positive, metavar="N", help="of a CPU (default: as a shard takes)")
    add("--max-num-batched-tokens", type=_positive, default=2048, metavar="N")
    add("--target-itl-ms", type=float, metavar="MS", help="0: none (default: auto)")
    add("--limit-s", type=float, default=1.0, metavar="S", help="for each measured limit; 0: none")
    add("--out", type=Path, metavar="FILE", help="write the results as JSON")
    args = parser.parse_args(argv)
    if args.suite is None and not args.models:
        parser.error("a MODEL or --suite is required")
    if not 0 <= args.shared_prefix_len < args.input_len:
        parser.error("--shared-prefix-len must be less than --input-len")
    return args


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def _work(args: argparse.Namespace) -> tuple[Sequence[str], Sequence[Load]]:
    if args.suite is not None:
        names, loads = SUITES[args.suite]
        return args.models or names, loads
    return args.models, [
        Load(
            args.requests or 2 * concurrency,
            concurrency,
            args.input_len,
            args.output_len,
            args.shared_prefix_len,
        )
        for concurrency in args.concurrency
    ]


def _runner_config(folder: Path, loads: Sequence[Load], args: argparse.Namespace) -> RunnerConfig:
    return RunnerConfig(
        str(folder),
        dtype=args.dtype,
        device=args.device,
        max_model_len=max(load.input_len + load.output_len for load in loads),
        max_num_seqs=max(load.concurrency for load in loads),
        max_num_batched_tokens=args.max_num_batched_tokens,
        block_size=_BLOCK_SIZE,
        num_threads=args.threads,
    )


def _num_blocks(loads: Sequence[Load]) -> int:
    """Of the scenario that needs the most, and one sequence more."""

    def needed(load: Load) -> int:
        return (load.concurrency + 1) * divide_up(load.input_len + load.output_len, _BLOCK_SIZE)

    return max(needed(load) for load in loads)


def _machine() -> dict[str, Any]:
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {**machine_facts("torch"), "card": card}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def _release_memory() -> None:
    """The last model's, before the next one is planned."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    raise SystemExit(main())
