"""How fast a checkpoint loads and what it takes of memory, against `cat FILES > /dev/null` and
against copying as many bytes into fresh memory.

    python -m benchmarks.loading MODEL [--tp 1 2] [--repeats 5] [--cold]

Two ways of loading: into the parameters, as models on torch need it, and packed, where the native
kernels read them. A load counts until every byte is there and the model is ready for a step. The
files are in the page cache, or, with --cold, are dropped from it each time. The ranks of a replica
load at once, each in a process of its own (`loading_rank`); the slowest counts.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks.loading_rank import COPY, KERNELS, PARAMETERS, Loaded, run_rank

_DEADLINE_S = 600.0
_NAMES = {PARAMETERS: "torch's parameters", KERNELS: "packed for kernels"}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tp", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="drop the files from the page cache")
    parser.add_argument("--rank", type=int, help="be this one and print what it took")
    parser.add_argument("--into", choices=[PARAMETERS, KERNELS, COPY], default=PARAMETERS)
    args = parser.parse_args(argv)
    if args.rank is not None:
        print(json.dumps(asdict(run_rank(args.model, args.rank, args.tp[0], args.into))))
        return 0
    for tp_size in args.tp:
        print(compare(args.model, tp_size, args.repeats, args.cold), flush=True)
    return 0


def compare(model: Path, tp_size: int, repeats: int, is_cold: bool) -> str:
    """In turns, so that a machine's moods meet all alike."""
    files = files_of(model)
    read_all(files)
    reads: list[float] = []
    loads: dict[str, list[list[Loaded]]] = {into: [] for into in (COPY, PARAMETERS, KERNELS)}
    for _ in range(repeats):
        if is_cold:
            drop_from_cache(files)
        reads.append(read_all(files))
        for into, found in loads.items():
            if is_cold:
                drop_from_cache(files)
            found.append(load_replica(model, tp_size, into))
    file_bytes = sum(file.stat().st_size for file in files)
    return describe(tp_size, file_bytes, reads, loads)


def describe(
    tp_size: int, file_bytes: int, reads: list[float], loads: dict[str, list[list[Loaded]]]
) -> str:
    read_s = median(reads)
    copy_s = median(slowest(ranks) for ranks in loads[COPY])
    lines = [
        f"TP={tp_size}: {file_bytes / 1e9:.2f} GB; cat {file_bytes / read_s / 1e9:.2f} GB/s; "
        f"copied to fresh memory {file_bytes / copy_s / 1e9:.2f} GB/s"
    ]
    for into, name in _NAMES.items():
        load_s = median(slowest(ranks) for ranks in loads[into])
        again_s = median(max(rank.again_s for rank in ranks) for ranks in loads[into])
        cpu_s = median(sum(rank.cpu_s for rank in ranks) for ranks in loads[into])
        peak_bytes = max(rank.peak_bytes for ranks in loads[into] for rank in ranks)
        lines.append(
            f"  {name:18} {file_bytes / load_s / 1e9:5.2f} GB/s = {read_s / load_s:4.0%} of cat, "
            f"{copy_s / load_s:4.0%} of the copy; "
            f"into memory at hand {file_bytes / again_s / 1e9:5.2f} GB/s = {read_s / again_s:4.0%} "
            f"of cat; {cpu_s:.2f} CPU seconds; a rank's peak {peak_bytes / file_bytes:.0%} of the "
            f"files"
        )
    return "\n".join(lines)


def slowest(ranks: list[Loaded]) -> float:
    """Seconds."""
    return max(rank.load_s for rank in ranks)


def files_of(model: Path) -> list[Path]:
    from worker.models.checkpoint import read_tensor_entries

    return sorted({entry.file for entry in read_tensor_entries(str(model)).values()})


def read_all(files: Sequence[Path]) -> float:
    """Seconds."""
    start = perf_counter()
    subprocess.run(["cat", *files], check=True, stdout=subprocess.DEVNULL, timeout=_DEADLINE_S)
    return perf_counter() - start


def drop_from_cache(files: Sequence[Path]) -> None:
    for file in files:
        fd = os.open(file, os.O_RDONLY)
        try:
            os.fsync(fd)  # what is not written yet cannot be dropped
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def load_replica(model: Path, tp_size: int, into: str) -> list[Loaded]:
    command = [sys.executable, "-m", "benchmarks.loading", str(model), "--tp", str(tp_size)]
    command += ["--into", into, "--rank"]
    ranks = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE) for rank in range(tp_size)
    ]
    outputs = [rank.communicate(timeout=_DEADLINE_S)[0] for rank in ranks]
    return [Loaded(**json.loads(output)) for output in outputs]


if __name__ == "__main__":
    sys.exit(main())
