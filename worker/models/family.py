"""What a model family is: from its config to a ModelSpec, from its tensors' names to ours."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from worker.models.config import ModelConfig
from worker.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Target:
    """Where a checkpoint's tensor goes: a parameter of the decoder, or one part of it."""

    parameter: str
    part: str = ""


@dataclass(frozen=True, slots=True)
class WeightMap:
    """Every tensor a checkpoint must have, and names it may have that are of no use."""

    targets: Mapping[str, Target]
    ignored_suffixes: tuple[str, ...] = ()
    ignored_names: frozenset[str] = frozenset()

    def is_ignored(self, name: str) -> bool:
        return name in self.ignored_names or name.endswith(self.ignored_suffixes)


@dataclass(frozen=True, slots=True)
class Family:
    """One family: data and two pure functions."""

    architectures: tuple[str, ...]
    build_spec: Callable[[ModelConfig], ModelSpec]
    build_weight_map: Callable[[ModelSpec], WeightMap]
