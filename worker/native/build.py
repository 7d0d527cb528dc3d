"""Compiles the kernels of `csrc/` into one library for each instruction set, once.

Owns where the libraries lie: those that come with the package, or a cache of the user's. A library
is named by a digest of its sources and flags, so a stale one is never loaded. Knows nothing of what
the kernels do. Called by `worker.native.library`; `python -m worker.native.build` compiles all
variants into the package, so that no start ever waits for a compiler.
"""

import fcntl
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

from worker.errors import NativeBuildError

logger = logging.getLogger(__name__)

_SOURCES = Path(__file__).parent / "csrc"
_PACKAGED = Path(__file__).parent / "lib"
_COMPILERS = ("g++", "c++", "clang++")
_COMPILE_TIMEOUT_S = 300
_LOCK_INTERVAL_S = 0.1
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-fno-gnu-unique",  # variants stay apart in one process
    "-fPIC",
    "-pthread",
)
_AVX512_FLAGS = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c")


@dataclass(frozen=True, slots=True)
class Variant:
    """An instruction set: what the compiler is told and what /proc/cpuinfo must list."""

    name: str
    flags: tuple[str, ...]
    cpu_flags: frozenset[str]


_AVX512_CPU = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma", "f16c"})

# The best first.
VARIANTS = (
    Variant("avx512bf16", (*_AVX512_FLAGS, "-mavx512bf16"), _AVX512_CPU | {"avx512_bf16"}),
    Variant("avx512", _AVX512_FLAGS, _AVX512_CPU),
    Variant("avx2", ("-mavx2", "-mfma", "-mf16c"), frozenset({"avx2", "fma", "f16c"})),
)


def usable_variants() -> list[Variant]:
    """What this machine can run, the one to be used first; empty where there is none.

    On Intel's cores a bf16 dot product takes as long as the four fp32 multiply-adds that do twice
    its work (measured on Sapphire Rapids: one in 2.2 cycles against two a cycle), so there the
    variant without it comes first.
    """
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return []
    vendor, flags = _cpu()
    usable = [variant for variant in VARIANTS if variant.cpu_flags <= flags]
    if vendor == "GenuineIntel":
        order = ("avx512", "avx512bf16", "avx2")
        usable.sort(key=lambda variant: order.index(variant.name))
    return usable


def can_have_library() -> bool:
    """Whether a library is there for this machine, or can likely be compiled."""
    variants = usable_variants()
    if not variants:
        return False
    if (_PACKAGED / _file_name(variants[0])).exists():
        return True
    return any(shutil.which(name) for name in _COMPILERS)


def library_path(variant: Variant) -> Path:
    """The variant's library, compiled now if there is none yet.

    Raises: NativeBuildError when it cannot be compiled here.
    """
    packaged = _PACKAGED / _file_name(variant)
    if packaged.exists():
        return packaged
    compiler = find_compiler()
    cached = _cache_dir() / _compiler_digest(compiler) / _file_name(variant)
    if not cached.exists():
        with _locked(cached.with_suffix(".lock")):  # the ranks of a host start together
            if not cached.exists():
                compile_library(compiler, variant, cached)
    return cached


def find_compiler() -> str:
    """Raises: NativeBuildError where there is none."""
    for name in _COMPILERS:
        path = shutil.which(name)
        if path is not None:
            return path
    raise NativeBuildError(f"no C++ compiler on the path ({', '.join(_COMPILERS)})")


def compile_library(compiler: str, variant: Variant, target: Path) -> None:
    """Writes another file first and renames it, so that nobody ever loads half a library.

    Raises: NativeBuildError with the compiler's last words.
    """
    start = monotonic()
    sources = sorted(_SOURCES.glob("*.cc"))
    with ExitStack() as stack:
        with _as_build_error(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            drafts = Path(
                stack.enter_context(tempfile.TemporaryDirectory(".draft", dir=target.parent))
            )
        objects = [str(drafts / f"{source.stem}.o") for source in sources]
        compile_ = [compiler, *_FLAGS, *variant.flags, "-c"]
        commands = [
            [*compile_, str(source), "-o", place]
            for source, place in zip(sources, objects, strict=True)
        ]
        list(stack.enter_context(ThreadPoolExecutor(len(commands))).map(_run, commands))
        draft = str(drafts / target.name)
        _run([compiler, "-shared", "-pthread", *objects, "-o", draft])
        with _as_build_error(target):
            os.replace(draft, target)
    logger.info("compiled %s in %.1f s", target, monotonic() - start)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a file's lock. Goes on without it when another holds it for too long: two compilers
    are a waste, no harm.
    """
    deadline = monotonic() + _COMPILE_TIMEOUT_S
    with ExitStack() as stack:
        with _as_build_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("w"))
        while monotonic() < deadline:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                sleep(_LOCK_INTERVAL_S)
        yield


@contextmanager
def _as_build_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NativeBuildError(f"cannot write {path}: {error}") from error


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeBuildError(f"{command[0]} failed: {error}") from error
    if done.returncode:
        raise NativeBuildError(f"{command[0]} failed: {done.stderr.strip()[-2000:]}")


def _file_name(variant: Variant) -> str:
    return f"shoal-{variant.name}-{_source_digest(variant)}.so"


def _source_digest(variant: Variant) -> str:
    digest = hashlib.sha256(" ".join((*_FLAGS, *variant.flags)).encode())
    for path in sorted(_SOURCES.iterdir()):
        if path.suffix in (".h", ".cc"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _compiler_digest(compiler: str) -> str:
    try:
        version = subprocess.run(
            [compiler, "--version"], capture_output=True, timeout=_COMPILE_TIMEOUT_S
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeBuildError(f"{compiler} failed: {error}") from error
    return hashlib.sha256(version).hexdigest()[:12]


def _cache_dir() -> Path:
    chosen = os.environ.get("SHOAL_CACHE_DIR")
    if chosen:
        return Path(chosen) / "native"
    try:
        return Path.home() / ".cache" / "shoal" / "native"
    except RuntimeError as error:  # no home directory
        raise NativeBuildError(f"no cache directory: {error}") from error


def _cpu() -> tuple[str, frozenset[str]]:
    """Vendor and flags of the first processor; nothing where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "", frozenset()
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields.get("vendor_id", ""), frozenset(fields.get("flags", "").split())


def main() -> int:
    """Compiles all variants into the package, and removes what older sources left there."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    wanted = {_file_name(variant): variant for variant in VARIANTS}
    try:
        compiler = find_compiler()
        for name, variant in wanted.items():
            if not (_PACKAGED / name).exists():
                compile_library(compiler, variant, _PACKAGED / name)
    except NativeBuildError as error:
        print(f"no native kernels: {error}; models will run on torch alone", file=sys.stderr)
        return 1
    for path in _PACKAGED.glob("shoal-*.so"):
        if path.name not in wanted:
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
