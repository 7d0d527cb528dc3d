"""One rank's load in this process, its seconds and its memory; ranks need not meet to load.

Run by `loading` once for each measurement, since only a new process has fresh memory. Linux only:
memory is what a process has beside cached pages of files.
"""

import mmap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.models.decoder import Decoder
    from worker.native.decoder import NativeDecoder
    from worker.native.direct_packing import DirectPacking

# Where to load to.
PARAMETERS, KERNELS, COPY = "parameters", "kernels", "copy"

_SAMPLE_INTERVAL_S = 0.002
_COPIED_BYTES = 8 << 20  # by a thread at a time
_MAX_LEN = 1024
_BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class Loaded:
    """One rank's load."""

    load_s: float  # until the model can compute
    again_s: float  # the same bytes to the same places once more: no fresh memory
    cpu_s: float  # of all threads, as for `load_s`
    own_bytes: int  # weights
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Rank:
    """A rank that never meets the others."""

    rank: int
    size: int


class Watch:
    """Seconds within it, added up."""

    def __init__(self) -> None:
        self.wall_s, self.cpu_s = 0.0, 0.0

    def __enter__(self) -> "Watch":
        self._start = (perf_counter(), process_time())
        return self

    def __exit__(self, *_: object) -> None:
        self.wall_s += perf_counter() - self._start[0]
        self.cpu_s += process_time() - self._start[1]


def run_rank(model: Path, rank: int, size: int, into: str) -> Loaded:
    import torch

    from worker.runner.allocator import keep_freed_memory
    from worker.runner.device import default_num_threads

    num_threads = default_num_threads(size, 1 << 30)
    torch.set_num_threads(num_threads)
    keep_freed_memory()
    if into == COPY:
        return copy_files(model, size, num_threads)
    return load_rank(str(model), Rank(rank, size), into == KERNELS)


def load_rank(model_path: str, rank: Any, is_packed: bool) -> Loaded:
    import torch

    from worker.layers.linear import TensorOptions
    from worker.models.config import load_model_config
    from worker.models.decoder import Decoder
    from worker.models.loader import load_weights
    from worker.models.registry import find_family

    config = load_model_config(model_path)
    family = find_family(config)
    spec = family.build_spec(config)
    weights = family.build_weight_map(spec)
    options = TensorOptions(getattr(torch, config.torch_dtype), torch.device("cpu"))
    first, again = Watch(), Watch()
    with PeakMemory() as memory:
        with first:
            model = Decoder(spec, _MAX_LEN, rank, options)
            packing = direct_packing(model, rank) if is_packed else None
            load_weights(model, model_path, weights, None, config.quantization, packing)
        with again:
            load_weights(model, model_path, weights, None, config.quantization, packing)
        with first:
            ready = model if packing is None else native_decoder(model, rank, packing)
    own_bytes = sum(x.numel() * x.element_size() for x in ready.parameters())
    return Loaded(first.wall_s, again.wall_s, first.cpu_s, own_bytes, memory.peak_bytes)


def direct_packing(model: "Decoder", rank: Any) -> "DirectPacking":
    from worker.native.direct_packing import DirectPacking
    from worker.native.library import native_library

    library = native_library()
    if library is None:
        raise SystemExit("there are no native kernels for this machine")
    return DirectPacking(library, model, rank)


def native_decoder(model: "Decoder", rank: Any, packing: "DirectPacking") -> "NativeDecoder":
    import torch

    from worker.native.decoder import NativeDecoder
    from worker.native.library import native_library

    library = native_library()
    assert library is not None, "it has packed"
    num_threads = torch.get_num_threads()
    return NativeDecoder(model, library, rank, num_threads, _MAX_LEN, _BLOCK_SIZE, packing.packed())


def copy_files(model: Path, num_ranks: int, num_threads: int) -> Loaded:
    """A rank's share of the files' bytes into fresh memory, in as many threads as cores: what any
    loader has to do that keeps weights in memory of its own.
    """
    import torch

    from worker.layers.zeros import zeros
    from worker.models.checkpoint import read_tensor_entries

    torch.set_num_threads(1)  # each of a pool's
    files = sorted({entry.file for entry in read_tensor_entries(str(model)).values()})
    shares = [(file, file.stat().st_size // num_ranks) for file in files]
    first, again = Watch(), Watch()
    with PeakMemory() as memory:
        own = [zeros((size,), torch.uint8, torch.device("cpu")) for _, size in shares]
        for watch in (first, again):
            with watch:
                for (file, _), to in zip(shares, own, strict=True):
                    copy_file(file, to, num_threads)
    own_bytes = sum(size for _, size in shares)
    return Loaded(first.wall_s, again.wall_s, first.cpu_s, own_bytes, memory.peak_bytes)


def copy_file(file: Path, to: Any, num_threads: int) -> None:
    """As much of it as fits. to: [bytes] uint8."""
    import torch

    with file.open("rb") as f:
        # A private mapping, since torch wants memory that it could write to.
        pages = mmap.mmap(f.fileno(), 0, flags=mmap.MAP_PRIVATE)
    source = torch.frombuffer(pages, dtype=torch.uint8)

    def copy(start: int) -> None:
        part = to[start : start + _COPIED_BYTES]
        part.copy_(source[start : start + len(part)])

    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(copy, range(0, len(to), _COPIED_BYTES)))


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
