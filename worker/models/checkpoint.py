"""The safetensors files of a model directory and the tensors in them, read from the headers alone.

No torch here: the memory plan counts weights before anything heavy is imported. The loader opens
the files.
"""

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

from worker.errors import CheckpointError

_INDEX = "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100 << 20  # the format's own limit


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a checkpoint."""

    name: str
    file: Path
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        return prod(self.shape)


def read_tensor_entries(model_path: str) -> dict[str, TensorEntry]:
    """All tensors by name. Raises: CheckpointError when files are missing or damaged."""
    entries: dict[str, TensorEntry] = {}
    for file in _weight_files(Path(model_path)):
        for name, shape in _read_header(file).items():
            entries[name] = TensorEntry(name, file, shape)
    return entries


def _weight_files(directory: Path) -> list[Path]:
    index = directory / _INDEX
    if index.exists():
        files = [directory / name for name in _indexed_files(index)]
        missing = [file.name for file in files if not file.exists()]
        if missing:
            raise CheckpointError(
                f"{directory}: the index names missing files: {', '.join(missing)}"
            )
        return files
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{directory} has no .safetensors files, the only weights that load")
    return files


def _indexed_files(index: Path) -> list[str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} cannot be read: {error}") from error


def _read_header(file: Path) -> dict[str, tuple[int, ...]]:
    """The format: u64 length, then that many bytes of JSON, then the data."""
    try:
        with file.open("rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            if length > _MAX_HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(f.read(length))
        end = max(
            (t["data_offsets"][1] for n, t in header.items() if n != "__metadata__"), default=0
        )
        if file.stat().st_size < 8 + length + end:
            raise ValueError("the file is cut short")
        return {n: tuple(t["shape"]) for n, t in header.items() if n != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
