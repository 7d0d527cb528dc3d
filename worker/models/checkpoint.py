"""The weight files of a model directory and the tensors in them, read from the headers alone.

Safetensors where there are any, else the pickled files that came before them. No torch here: the
memory plan counts weights before anything heavy is imported. The loader opens the files.
"""

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

from worker.errors import CheckpointError
from worker.models.pickled_header import read_pickled_shapes

# Index and files, the preferred form first.
_FORMS = (
    ("model.safetensors.index.json", "*.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model*.bin"),
)
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
    for index_name, pattern in _FORMS:
        index = directory / index_name
        if index.exists():
            return _existing(directory, _indexed_files(index))
        files = sorted(directory.glob(pattern))
        if files:
            return files
    raise CheckpointError(f"{directory} has no .safetensors files and no pytorch_model*.bin")


def _existing(directory: Path, names: list[str]) -> list[Path]:
    missing = [name for name in names if not (directory / name).exists()]
    if missing:
        raise CheckpointError(f"{directory}: the index names missing files: {', '.join(missing)}")
    return [directory / name for name in names]


def _indexed_files(index: Path) -> list[str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} cannot be read: {error}") from error


def _read_header(file: Path) -> dict[str, tuple[int, ...]]:
    read = _read_safetensors_shapes if file.suffix == ".safetensors" else read_pickled_shapes
    try:
        return read(file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def _read_safetensors_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The format: u64 length, then that many bytes of JSON, then the data."""
    with file.open("rb") as f:
        (length,) = struct.unpack("<Q", f.read(8))
        if length > _MAX_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(f.read(length))
    end = max((t["data_offsets"][1] for n, t in header.items() if n != "__metadata__"), default=0)
    if file.stat().st_size < 8 + length + end:
        raise ValueError("the file is cut short")
    return {n: tuple(t["shape"]) for n, t in header.items() if n != "__metadata__"}
