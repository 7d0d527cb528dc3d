"""Names and shapes in a file of `torch.save`, read without torch and without its data.

The pickle in such a file calls functions that rebuild tensors; here the same calls keep the shapes.
Only these calls are allowed, so that a checkpoint cannot run code. Called by `checkpoint`.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile, ZipFile, is_zipfile

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # of files from before torch 1.6, which are not archives


class _Shape(tuple[int, ...]):
    """Tells a tensor from the other tuples of a pickle."""


def read_pickled_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Raises: OSError or ValueError when this is no dictionary of tensors, or a damaged one."""
    try:
        if is_zipfile(file):
            with ZipFile(file) as archive:
                name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
                with archive.open(name) as f:
                    tensors = _ShapeUnpickler(f).load()
        else:
            with file.open("rb") as f:
                tensors = _load_older(f)
        return {n: tuple(t) for n, t in tensors.items() if isinstance(t, _Shape)}
    except OSError:
        raise
    except (BadZipFile, pickle.UnpicklingError, StopIteration, *_DAMAGED) as error:
        raise ValueError(f"no dictionary of tensors, or cut short: {error}") from error


# What a pickle of other bytes than it should have may raise, by the library's documentation.
_DAMAGED = (EOFError, AttributeError, ImportError, IndexError, KeyError, TypeError, ValueError)


def _load_older(f: IO[bytes]) -> Any:
    """Four pickles: a magic number, the protocol's version, the writer's system, the tensors."""
    if _ShapeUnpickler(f).load() != _MAGIC_NUMBER:
        raise ValueError("not a file of torch.save")
    for _ in range(2):
        _ShapeUnpickler(f).load()
    return _ShapeUnpickler(f).load()


class _ShapeUnpickler(pickle.Unpickler):
    """One pickle. Immutable but for its place in the file."""

    def find_class(self, module: str, name: str) -> Callable[..., Any] | str:
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            return name  # goes into the storage's id, which nobody reads
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it holds {module}.{name}") from None

    def persistent_load(self, pid: Any) -> None:
        """A storage: the data, which stays in the file."""


def _tensor(storage: None, offset: int, size: tuple[int, ...], *_: Any) -> _Shape:
    return _Shape(size)


def _parameter(data: _Shape, *_: Any) -> _Shape:
    return data


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}
