"""What a model family is: from its config to a ModelSpec, from its tensors' names to ours."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from worker.models.config import ModelConfig
from worker.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Rows:
    """Some features of a fused tensor: `length` from `start` on in each of its alike groups.

    group 0          group 1
    [ q q k v ]      [ q q k v ]     q: start 0, length 2; k: start 2, length 1
    """

    num_groups: int
    group_size: int  # features
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Target:
    """Where a checkpoint's tensor goes: a parameter of the decoder, or one part of it."""

    parameter: str
    part: str = ""
    rows: Rows | None = None  # the features taken, of the output; None: all
    is_transposed: bool = False  # the checkpoint has [in, out]
    expert: int | None = None  # of a parameter that stacks all experts' tensors: which of them
    is_stacked: bool = False  # the checkpoint's tensor stacks them as well

    def of_layer(self, layer: int) -> "Target":
        return replace(self, parameter=f"layers.{layer}.{self.parameter}")


# One tensor may feed several targets, as a fused query-key-value projection does.
Targets = Target | tuple[Target, ...]


def fused(
    parameter: str, parts: Mapping[str, int], num_groups: int = 1, is_transposed: bool = False
) -> tuple[Target, ...]:
    """Targets of a tensor that has parts of these sizes one after another, in each group."""
    group_size = sum(parts.values())
    targets, start = [], 0
    for part, length in parts.items():
        rows = Rows(num_groups, group_size, start, length)
        targets.append(Target(parameter, part, rows, is_transposed))
        start += length
    return tuple(targets)


def layer_targets(
    prefix: str, num_layers: int, targets: Mapping[str, Targets]
) -> dict[str, Targets]:
    """One layer's targets, for all layers. `prefix`: of the names, with {} for the layer."""
    return {
        f"{prefix.format(layer)}{name}": (
            target.of_layer(layer)
            if isinstance(target, Target)
            else tuple(one.of_layer(layer) for one in target)
        )
        for layer in range(num_layers)
        for name, target in targets.items()
    }


@dataclass(frozen=True, slots=True)
class WeightMap:
    """Every tensor a checkpoint must have, and names it may have that are of no use."""

    targets: Mapping[str, Targets]
    ignored_suffixes: tuple[str, ...] = ()
    ignored_names: frozenset[str] = frozenset()
    ignored_prefixes: tuple[str, ...] = ()
    optional_prefix: str = ""  # of names, which some checkpoints leave out
    aliases: Mapping[str, str] = field(default_factory=dict)  # other names of the same tensors

    def canonical_name(self, name: str) -> str:
        name = self.aliases.get(name, name)
        if name not in self.targets and self.optional_prefix + name in self.targets:
            return self.optional_prefix + name
        return name

    def targets_of(self, name: str) -> tuple[Target, ...]:
        target = self.targets[name]
        return (target,) if isinstance(target, Target) else target

    def is_ignored(self, name: str) -> bool:
        return (
            name in self.ignored_names
            or name.endswith(self.ignored_suffixes)
            or name.startswith(self.ignored_prefixes)
        )


@dataclass(frozen=True, slots=True)
class Family:
    """One family: data and two pure functions."""

    architectures: tuple[str, ...]
    build_spec: Callable[[ModelConfig], ModelSpec]
    build_weight_map: Callable[[ModelSpec], WeightMap]
