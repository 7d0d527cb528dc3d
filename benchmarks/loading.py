"""How fast a checkpoint loads and what it takes of memory, against `cat FILES > /dev/null` and
against writing to as much fresh memory.

    python -m benchmarks.loading MODEL [--tp 1 2] [--repeats 5]

Everything is warm in the page cache. The ranks of a replica load at once, each in a process of its
own; the slowest counts. A loader has to read and to touch its parameters' memory for the first
time; on virtual machines whose host takes freed memory back the latter costs most. Linux only:
memory is what a rank has beside cached pages of files.
"""

import argparse
import json
import mmap
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event, Thread
from time import perf_counter, process_time

_DEADLINE_S = 600.0
_SAMPLE_INTERVAL_S = 0.002
_TOUCHED_BYTES = 32 << 20  # by a thread at a time


@dataclass(frozen=True, slots=True)
class Loaded:
    """One rank's load."""

    build_s: float  # parameters made and zeroed
    load_s: float
    cpu_s: float  # of all threads
    own_bytes: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Rank:
    """A rank that never meets the others: loading needs no collectives."""

    rank: int
    size: int


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tp", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rank", type=int, help="load this one here and print what it took")
    parser.add_argument("--touch", type=int, help="write to so many fresh bytes and print seconds")
    args = parser.parse_args(argv)
    if args.touch is not None:
        print(touch_memory(args.touch, args.tp[0]))
        return 0
    if args.rank is not None:
        print(json.dumps(asdict(load_rank(str(args.model), Rank(args.rank, args.tp[0])))))
        return 0
    for tp_size in args.tp:
        print(compare(args.model, tp_size, args.repeats))
    return 0


def compare(model: Path, tp_size: int, repeats: int) -> str:
    from worker.models.checkpoint import read_tensor_entries

    files = sorted({entry.file for entry in read_tensor_entries(str(model)).values()})
    file_bytes = sum(file.stat().st_size for file in files)
    read_all(files)
    reads, touches, loads, peaks, cpu = [], [], [], [], []
    for _ in range(repeats):
        reads.append(read_all(files))
        touches.append(max(touch_replica(model, file_bytes // tp_size, tp_size)))
        ranks = load_replica(model, tp_size)
        loads.append(max(rank.load_s for rank in ranks))
        cpu.append(sum(rank.cpu_s for rank in ranks))
        peaks.append(max(rank.peak_bytes for rank in ranks))
    read_s, touch_s, load_s = map(statistics.median, (reads, touches, loads))
    return (
        f"TP={tp_size}: {file_bytes / 1e9:.2f} GB; cat {file_bytes / read_s / 1e9:.2f} GB/s, "
        f"first touch {file_bytes / touch_s / 1e9:.2f} GB/s, "
        f"load {file_bytes / load_s / 1e9:.2f} GB/s = {read_s / load_s:.0%} of cat, "
        f"{(read_s + touch_s) / load_s:.0%} of both after each other; "
        f"{statistics.median(cpu):.2f} CPU seconds; "
        f"a rank's peak is {max(peaks) / file_bytes:.0%} of the files"
    )


def read_all(files: Sequence[Path]) -> float:
    """Seconds."""
    start = perf_counter()
    subprocess.run(["cat", *files], check=True, stdout=subprocess.DEVNULL, timeout=_DEADLINE_S)
    return perf_counter() - start


def load_replica(model: Path, tp_size: int) -> list[Loaded]:
    outputs = run_ranks(model, tp_size, [["--rank", str(rank)] for rank in range(tp_size)])
    return [Loaded(**json.loads(output)) for output in outputs]


def touch_replica(model: Path, num_bytes: int, tp_size: int) -> list[float]:
    """Seconds of each rank."""
    return [float(s) for s in run_ranks(model, tp_size, [["--touch", str(num_bytes)]] * tp_size)]


def run_ranks(model: Path, tp_size: int, arguments: list[list[str]]) -> list[bytes]:
    """What this module, run once for each, prints."""
    command = [sys.executable, "-m", "benchmarks.loading", str(model), "--tp", str(tp_size)]
    ranks = [subprocess.Popen([*command, *own], stdout=subprocess.PIPE) for own in arguments]
    return [rank.communicate(timeout=_DEADLINE_S)[0] for rank in ranks]


def touch_memory(num_bytes: int, num_ranks: int) -> float:
    """Seconds to write once to each page of as much memory, in as many threads as a load has."""
    import torch

    from worker.layers.zeros import zeros
    from worker.runner.model_runner import default_num_threads

    threads = default_num_threads(num_ranks, 1 << 30)
    torch.set_num_threads(1)
    memory = zeros((num_bytes,), torch.uint8, torch.device("cpu"))

    def touch(start: int) -> None:
        memory[start : start + _TOUCHED_BYTES : mmap.PAGESIZE] = 1

    start = perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(touch, range(0, num_bytes, _TOUCHED_BYTES)))
    return perf_counter() - start


def load_rank(model_path: str, rank: Rank) -> Loaded:
    import torch

    from worker.layers.linear import TensorOptions
    from worker.models.config import load_model_config
    from worker.models.decoder import Decoder
    from worker.models.loader import load_weights
    from worker.models.registry import find_family
    from worker.runner.model_runner import default_num_threads

    torch.set_num_threads(default_num_threads(rank.size, 1 << 30))
    config = load_model_config(model_path)
    family = find_family(config)
    spec = family.build_spec(config)
    options = TensorOptions(getattr(torch, config.torch_dtype), torch.device("cpu"))
    with PeakMemory() as memory:
        start = perf_counter()
        model = Decoder(spec, 1024, rank, options)  # type: ignore[arg-type]
        built, cpu = perf_counter(), process_time()
        weights = family.build_weight_map(spec)
        load_weights(model, model_path, weights, quantization=config.quantization)
        done, cpu_s = perf_counter(), process_time() - cpu
    own_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    return Loaded(built - start, done - built, cpu_s, own_bytes, memory.peak_bytes)


class PeakMemory:
    """The most memory that is not a file's pages, beyond what there was at the beginning.

    A thread of its own samples it between `__enter__` and `__exit__`.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._base = _anonymous_bytes()
        self._is_over = Event()
        self._thread = Thread(target=self._sample)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _sample(self) -> None:
        is_over = False
        while not is_over:  # once more at the end
            is_over = self._is_over.wait(_SAMPLE_INTERVAL_S)
            self.peak_bytes = max(self.peak_bytes, _anonymous_bytes() - self._base)


def _anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no RssAnon")


if __name__ == "__main__":
    sys.exit(main())
