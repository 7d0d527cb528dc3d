"""The weight files of a model directory and the tensors in them, read from the headers alone.

Safetensors where there are any, else the pickled files that came before them. No torch here: the
memory plan counts weights before anything heavy is imported. The loader opens the files.
"""

import json
import struct
from pathlib import Path

from worker.errors import CheckpointError
from worker.models.pickled_header import read_pickled_shapes
from worker.models.quantization import Quantization, unpacked_entries
from worker.models.tensor_entry import TensorEntry

# Index and files, the preferred form first.
_FORMS = (
    ("model.safetensors.index.json", "*.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model*.bin"),
)
_MAX_HEADER_BYTES = 100 << 20  # the format's own limit


def read_tensor_entries(
    model_path: str, quantization: Quantization | None = None
) -> dict[str, TensorEntry]:
    """All tensors by name, in the order of the files. Quantized ones are what they unpack to.

    Raises: CheckpointError when files are missing or damaged.
    """
    entries: dict[str, TensorEntry] = {}
    for file in _weight_files(Path(model_path)):
        for entry in _read_header(file):
            entries[entry.name] = entry
    return entries if quantization is None else unpacked_entries(entries, quantization)


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


def _read_header(file: Path) -> list[TensorEntry]:
    try:
        if file.suffix == ".safetensors":
            return _read_safetensors_header(file)
        return [TensorEntry(name, file, shape) for name, shape in read_pickled_shapes(file).items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def _read_safetensors_header(file: Path) -> list[TensorEntry]:
    """The format: u64 length, then that many bytes of JSON, then the data."""
    with file.open("rb") as f:
        (length,) = struct.unpack("<Q", f.read(8))
        if length > _MAX_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(f.read(length))
    header.pop("__metadata__", None)
    end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    if file.stat().st_size < 8 + length + end:
        raise ValueError("the file is cut short")
    by_place = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    return [TensorEntry(n, file, tuple(t["shape"]), str(t["dtype"])) for n, t in by_place]
