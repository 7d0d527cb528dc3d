"""What the engine's benchmark measures: its command line, suites, and what they ask of a runner."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.in_process import ALL_SHAPES
from benchmarks.load import Load
from worker.config import RunnerConfig
from worker.layers.shard import divide_up

BLOCK_SIZE = 16

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
# What the GPU suite leaves out in turn, to show what it brings: on its first model and loads.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "no CUDA graphs": {"enforce_eager": True},
    "no step planned ahead": {"async_scheduling": False},
    "no Triton kernels": {"attention_backend": "gathered", "enforce_eager": True},
}
NUM_VARIED_LOADS = 2
_BUDGETS = {"cpu": 2048, "gpu": 8192}  # tokens a step


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
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
    add("--max-num-batched-tokens", type=_positive, metavar="N", help="(default: 2048, GPUs 8192)")
    add("--attention-backend", default="auto", metavar="NAME")
    add("--enforce-eager", action="store_true", help="no CUDA graphs")
    add(
        "--async-scheduling",
        action=argparse.BooleanOptionalAction,
        help="plan a step while the one before runs (default: on GPUs)",
    )
    add("--variants", action=argparse.BooleanOptionalAction, default=True, help="of the GPU suite")
    add("--transformers", action="store_true", help="also transformers' continuous batching")
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


def work(args: argparse.Namespace) -> tuple[Sequence[str], Sequence[Load]]:
    """Models and loads."""
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


def runner_config(
    folder: Path, loads: Sequence[Load], args: argparse.Namespace, variant: Mapping[str, Any]
) -> RunnerConfig:
    fields: dict[str, Any] = {
        "dtype": args.dtype,
        "device": args.device,
        "max_model_len": max(load.input_len + load.output_len for load in loads),
        "max_num_seqs": max(load.concurrency for load in loads),
        "max_num_batched_tokens": args.max_num_batched_tokens or _BUDGETS[args.suite or "cpu"],
        "block_size": BLOCK_SIZE,
        "num_threads": args.threads,
        "attention_backend": args.attention_backend,
        "enforce_eager": args.enforce_eager,
        "async_scheduling": args.async_scheduling,
    }
    return RunnerConfig(str(folder), **{**fields, **variant})


def num_blocks(loads: Sequence[Load]) -> int:
    """Of the scenario that needs the most, and one sequence more."""

    def needed(load: Load) -> int:
        return (load.concurrency + 1) * divide_up(load.input_len + load.output_len, BLOCK_SIZE)

    return max(needed(load) for load in loads)
