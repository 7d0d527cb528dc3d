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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from benchmarks.closed_loop import ClosedLoop
from benchmarks.device_idle import device_idle_share
from benchmarks.engine_arguments import (
    NUM_VARIED_LOADS,
    SUITES,
    VARIANTS,
    num_blocks,
    parse,
    runner_config,
    work,
)
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
from benchmarks.step_parts import StepTimes, TimedRunner, timed_executor
from benchmarks.step_summary import summarize_steps
from benchmarks.transformers_peer import measure_transformers
from worker.errors import ShoalError
from worker.runner.device import resolve_device

# First-use costs are not part of a scenario. Tokens:
_WARM_INPUT = 64
_WARM_OUTPUT = 16
# Beside a scenario's own, so that no prompt is known:
_WARM_SEED = 1_000_003
_IDLE_SEED = 2_000_003
_PROFILED_STEPS = 30

__all__ = ["ALL_SHAPES", "SUITES", "main", "measure_model"]


@dataclass(frozen=True, slots=True)
class Measured:
    """One scenario, not yet judged by limits, of which the second half is measured afterwards."""

    load: Load
    total: LoadResult
    steps: list[StepTimes]
    idle_share: float | None


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    names, loads = work(args)
    report: dict[str, Any] = {"machine": _machine(), "models": {}}
    for title, name, its_loads, variant in _jobs(args, names, loads):
        try:
            report["models"][title] = measure_model(title, name, its_loads, args, variant)
        except (ShoalError, torch.OutOfMemoryError) as error:
            print(f"\n{title}: {error}", flush=True)
            report["models"][title] = {"error": str(error)}
        _release_memory()
        if args.transformers and not variant:
            report["models"][title]["transformers"] = _peer(name, its_loads, args)
        if args.out is not None:
            args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(any("error" in model for model in report["models"].values()))


def _jobs(
    args: argparse.Namespace, names: Sequence[str], loads: Sequence[Load]
) -> Iterator[tuple[str, str, Sequence[Load], Mapping[str, Any]]]:
    """Titles, models, loads, and what is left out."""
    for name in names:
        yield name, name, loads, {}
        if args.suite == "gpu" and args.variants and name == names[0]:
            for variant, fields in VARIANTS.items():
                yield f"{name}, {variant}", name, loads[:NUM_VARIED_LOADS], fields


def measure_model(
    title: str,
    name: str,
    loads: Sequence[Load],
    args: argparse.Namespace,
    variant: Mapping[str, Any],
) -> dict[str, Any]:
    """Raises: ShoalError when the model cannot be loaded, does not fit, or fails."""
    started_s = time.perf_counter()
    with model_directory(name) as folder:
        config = runner_config(folder, loads, args, variant)
        runner = loaded_runner(TimedRunner, name, config)
        # What all scenarios need, or what there is: the scheduler then does with less.
        count = min(runner.plan_num_blocks(), num_blocks(loads))
        runner.allocate_kv_cache(count)
        runner.capture_decodes()  # else in the middle of what is measured
        load_s = time.perf_counter() - started_s
        engine = engine_config(runner, config, count, args.target_itl_ms)
        loop = ClosedLoop(engine, timed_executor(runner))
        before = _limits(runner.device, args.limit_s)
        measured = [_measured(loop, load, seed) for seed, load in enumerate(loads)]
        after = _limits(runner.device, args.limit_s)
    limits = best_limits(before, after) if before and after else None
    is_counted = runner.dtype.itemsize == 2  # as the limits count
    shape = shape_of(runner.model_config, runner.spec) if is_counted else None
    results = [_judged(one, shape, limits) for one in measured]
    where = f"{runner.memory_plan.dtype} on {_device_name(runner.device)}"
    print_results(f"{title}: {where}, loaded in {load_s:.1f} s", results, limits)
    if runner.memory_use:
        print(runner.memory_use, flush=True)
    return {
        "dtype": runner.memory_plan.dtype,
        "device": _device_name(runner.device),
        "num_threads": torch.get_num_threads(),
        "num_blocks": count,
        "memory": runner.memory_use,
        "load_s": load_s,
        "limits": asdict(limits) if limits else None,
        "scenarios": [asdict(result) for result in results],
    }


def _peer(
    name: str, loads: Sequence[Load], args: argparse.Namespace
) -> list[dict[str, Any]] | dict[str, str]:
    dtype = getattr(torch, "bfloat16" if args.dtype == "auto" else args.dtype)
    try:
        with model_directory(name) as folder:
            found = measure_transformers(folder, loads, resolve_device(args.device), dtype)
    except Exception as error:  # a peer's failure is a result
        print(f"transformers: {error!r}", flush=True)
        return {"error": repr(error)}
    for one in found:
        load = one["load"]
        what = f"{load['input_len']} in, {load['output_len']} out, {load['concurrency']} at once"
        said = one.get("error") or f"{one['tokens_per_s']:.1f} tokens/s"
        print(f"transformers, {what}: {said}", flush=True)
    return found


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
