"""Fills a decoder's parameters from safetensors files; each rank reads only its slices.

The family's weight map says where a tensor goes, the layer says which slice of it this rank keeps.
A checkpoint must match exactly: a tensor missing, left over or of another shape is an error, never
a guess.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import cast

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from worker.errors import CheckpointError
from worker.layers.shard import Shard, ShardedLayer
from worker.models.checkpoint import TensorEntry, read_tensor_entries
from worker.models.family import Target, WeightMap

# Called with the bytes loaded so far and the bytes to load in all, both of this rank.
Progress = Callable[[int, int], None]

_MAX_NAMES_LISTED = 8


def load_weights(
    model: nn.Module, model_path: str, weights: WeightMap, progress: Progress | None = None
) -> None:
    """Raises: CheckpointError when the checkpoint does not match the model; lists what does not."""
    entries = read_tensor_entries(model_path)
    _check_names(model_path, entries, weights)
    shards = {
        name: _checked_shard(model, entries[name], target)
        for name, target in weights.targets.items()
    }
    by_file: dict[Path, list[str]] = defaultdict(list)
    for name in weights.targets:
        by_file[entries[name].file].append(name)
    total = sum(_num_bytes(model, weights.targets[name], shard) for name, shard in shards.items())
    done = 0
    for file, names in sorted(by_file.items()):
        for name, data in _read_slices(file, {name: shards[name] for name in names}):
            target, shard = weights.targets[name], shards[name]
            parameter = model.get_parameter(target.parameter)
            parameter.narrow(shard.dim, shard.offset, shard.num_available).copy_(data)
            done += _num_bytes(model, target, shard)
            if progress is not None:
                progress(done, total)


def _read_slices(file: Path, shards: Mapping[str, Shard]) -> Iterator[tuple[str, Tensor]]:
    """Yields (name, this rank's slice) for tensors of one file."""
    try:
        with safe_open(file, framework="pt") as f:
            for name, shard in shards.items():
                if shard.num_available == 0:
                    continue  # this rank's part is padding only
                part = slice(shard.start, shard.start + shard.num_available)
                tensor = f.get_slice(name)
                yield name, cast(Tensor, tensor[part] if shard.dim == 0 else tensor[:, part])
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def _check_names(model_path: str, entries: Mapping[str, TensorEntry], weights: WeightMap) -> None:
    missing = [name for name in weights.targets if name not in entries]
    left_over = [
        name for name in entries if name not in weights.targets and not weights.is_ignored(name)
    ]
    problems = [
        f"{len(names)} {what}: {_listed(names)}"
        for what, names in (("missing", missing), ("left over", left_over))
        if names
    ]
    if problems:
        raise CheckpointError(f"{model_path}: tensors do not match; {'; '.join(problems)}")


def _listed(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:_MAX_NAMES_LISTED])
    return shown if len(names) <= _MAX_NAMES_LISTED else f"{shown}, ..."


def _checked_shard(model: nn.Module, entry: TensorEntry, target: Target) -> Shard:
    path, _, parameter = target.parameter.rpartition(".")
    layer = cast(ShardedLayer, model.get_submodule(path))
    shard = layer.shard(parameter, target.part)
    if shard.full_shape != entry.shape:
        expected, found = list(shard.full_shape), list(entry.shape)
        raise CheckpointError(f"{entry.file}: {entry.name} has shape {found}, not {expected}")
    return shard


def _num_bytes(model: nn.Module, target: Target, shard: Shard) -> int:
    parameter = model.get_parameter(target.parameter)
    across = parameter.numel() // parameter.shape[shard.dim]
    return shard.num_available * across * parameter.element_size()
