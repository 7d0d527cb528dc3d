"""The CPU kernels against torch and against the machine, alternating within one run.

    python -m benchmarks.native products            # rows x weights: GFLOP/s, GB/s, beside torch
    python -m benchmarks.native steps MODEL_DIR...  # decode steps and a prompt, beside the limit

The limits are measured between the measurements: reading memory with all threads, and the best
product of a large batch. Figures are the best of several tries; compare within a run only.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.native_product import multiply
from worker.config import RunnerConfig
from worker.engine.sampling_params import SamplingParams
from worker.engine.step import AdmittedSequence, ScheduledSequence, StepPlan
from worker.layers.shard import divide_up
from worker.native.library import Team, native_library
from worker.native.packing import PackedWeight, Packer
from worker.parallel.group import SingleGroup
from worker.runner.model_runner import ModelRunner

SHAPES = ((896, 9728), (4864, 896), (576, 3072), (896, 151936))  # in, out
ROWS = (1, 2, 4, 8, 16, 32, 128, 1024)
_READ_BYTES = 512 << 20  # beyond the caches
_BLOCK_SIZE = 16


def best_s(runs: dict[str, Callable[[], object]], tries: int) -> dict[str, float]:
    """Seconds of the best run of each, in turns, so that a disturbance meets all of them."""
    best = {name: float("inf") for name in runs}
    for _ in range(tries):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


class Bench:
    """The library, a team of `num_threads`, and memory to read."""

    def __init__(self, num_threads: int) -> None:
        library = native_library()
        if library is None:
            raise SystemExit("there are no native kernels for this machine")
        torch.set_num_threads(num_threads)
        self.library = library
        self.team = Team(library, num_threads)
        self.memory = torch.ones(_READ_BYTES // 4)

    def read(self) -> float:
        sum_: float = self.library.shoal_probe_read(
            self.team.handle, self.memory.data_ptr(), _READ_BYTES
        )
        return sum_


def products(bench: Bench, dtype: torch.dtype) -> None:
    """Weights are changed from run to run, as a model's are: none is read from a cache."""
    packer = Packer(bench.library, bench.team)
    for num_in, num_out in SHAPES:
        count = max(2, (192 << 20) // (num_in * num_out * dtype.itemsize))
        weights = [torch.randn(num_out, num_in).to(dtype) for _ in range(count)]
        packed = [packer.pack(weight) for weight in weights]
        for num_rows in ROWS:
            some = 1 if num_rows >= 128 else min(count, 8)
            x = torch.randn(num_rows, packed[0].data.shape[1])
            narrow = x[:, :num_in].to(dtype)
            runs: dict[str, Callable[[], object]] = {
                "native": partial(_multiply_all, bench, x, packed[:some]),
                "torch": partial(_linear_all, narrow, weights[:some]),
                "read": bench.read,
            }
            seconds = best_s(runs, tries=5)
            _print_product(num_in, num_out, num_rows, dtype, some, seconds)


def _multiply_all(bench: Bench, x: Tensor, weights: list[PackedWeight]) -> None:
    for weight in weights:
        multiply(bench.library, bench.team, x, weight)


def _linear_all(x: Tensor, weights: list[Tensor]) -> None:
    for weight in weights:
        F.linear(x, weight)


def _print_product(
    num_in: int,
    num_out: int,
    num_rows: int,
    dtype: torch.dtype,
    some: int,
    seconds: dict[str, float],
) -> None:
    gflop = 2e-9 * num_in * num_out * num_rows * some
    gbytes = 1e-9 * num_in * num_out * dtype.itemsize * some
    own, torch_, read = seconds["native"], seconds["torch"], seconds["read"]
    print(
        f"{str(dtype)[6:]:8} {num_in:5} -> {num_out:6}  {num_rows:4} rows:"
        f" native {gflop / own:6.0f} GFLOP/s {gbytes / own:5.1f} GB/s,"
        f" torch {gflop / torch_:6.0f} GFLOP/s {gbytes / torch_:5.1f} GB/s;"
        f" memory {_READ_BYTES / read / 1e9:5.1f} GB/s",
        flush=True,
    )


class Steps:
    """A runner and plans for it: prompts of `context` tokens, then decode steps."""

    def __init__(
        self, path: str, dtype: str, num_threads: int, is_native: bool, batch: int
    ) -> None:
        config = RunnerConfig(
            path,
            dtype=dtype,
            device="cpu",
            num_threads=num_threads,
            num_blocks=4096,
            max_num_seqs=max(batch, 1),
            max_model_len=2048,
            native_kernels=is_native,
        )
        self.runner = ModelRunner(config, SingleGroup())
        self.runner.load()
        self.runner.allocate_kv_cache(4096)
        self._step = 0

    def prompt(self, batch: int, context: int, room: int) -> float:
        """Seconds for `batch` prompts of `context` tokens each; there is room for more behind."""
        generator = np.random.default_rng(0)
        blocks = divide_up(context + room, _BLOCK_SIZE)
        vocab_size = self.runner.spec.vocab_size
        sampling = SamplingParams(max_tokens=2048, temperature=0.0)
        prompts = [generator.integers(4, vocab_size, context).tolist() for _ in range(batch)]
        admitted = [AdmittedSequence(i, ids, [], sampling) for i, ids in enumerate(prompts)]
        sequences = [
            ScheduledSequence(i, 0, context, list(range(i * blocks, (i + 1) * blocks)), True)
            for i in range(batch)
        ]
        plan = StepPlan(self._step, list(chain.from_iterable(prompts)), sequences, admitted, [])
        start = time.perf_counter()
        self._last = self.runner.execute(plan).token_ids
        self._position = context
        return time.perf_counter() - start

    def decode(self) -> None:
        sequences = [
            ScheduledSequence(i, self._position, 1, [], True) for i in range(len(self._last))
        ]
        self._last = self.runner.execute(StepPlan(1, self._last, sequences)).token_ids
        self._position += 1

    def release(self) -> None:
        self.runner.execute(StepPlan(2, [], [], [], list(range(len(self._last)))))


def steps(bench: Bench, path: str, dtype: str, num_threads: int) -> None:
    for batch in (1, 8, 32):
        both = {
            name: Steps(path, dtype, num_threads, name == "native", batch)
            for name in ("native", "torch")
        }
        for run in both.values():
            run.prompt(batch, 64, 64)
        seconds = best_s(
            {**{name: run.decode for name, run in both.items()}, "read": bench.read}, tries=20
        )
        model = both["native"].runner._model
        assert model is not None
        gbytes = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e9
        speed = _READ_BYTES / seconds["read"] / 1e9
        print(
            f"{path} {dtype} batch {batch:2}: native {seconds['native'] * 1e3:7.2f} ms"
            f" ({gbytes / seconds['native']:.1f} of {speed:.1f} GB/s),"
            f" torch {seconds['torch'] * 1e3:7.2f} ms",
            flush=True,
        )
        for run in both.values():
            run.release()
        if batch == 1:
            prompts = {name: min(_prompt(run) for _ in range(2)) for name, run in both.items()}
            print(
                f"{path} {dtype} prompt of 1500: native {prompts['native']:.3f} s,"
                f" torch {prompts['torch']:.3f} s",
                flush=True,
            )


def _prompt(run: Steps) -> float:
    seconds = run.prompt(1, 1500, 8)
    run.release()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("products", "steps"))
    parser.add_argument("models", nargs="*")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    bench = Bench(args.threads)
    if args.what == "products":
        products(bench, getattr(torch, args.dtype))
    for path in args.models:
        steps(bench, path, args.dtype, args.threads)


if __name__ == "__main__":
    main()
