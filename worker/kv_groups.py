"""Which layers share KV blocks, so that those that see only a window give theirs back behind it.

A block holds `block_size` tokens for the layers of one group. All groups have room for the same
number of layers, so that all blocks are of one size and any group can have any of them: layer i of
one group lies in the same tensors as layer i of another, in other blocks.

    layers   0 1 2 3 4 5 6 7 8 9 10 11     f: sees all, w: a window
             w w w w w f w w w w w  f
    groups   0: 5 11    1: 0 1    2: 2 3    3: 4 6    4: 7 8    5: 9 10

After the hybrid KV cache of vLLM (2025); unlike there, memory decides how large a group is, and
whether there are groups at all. Pure; used by the memory plan, the runner and the shard.
"""

from collections.abc import Sequence
from dataclasses import dataclass

# A further group is worth so much of the cache: every block of tokens is dealt and found once more.
_GROUP_COST = 0.02


@dataclass(frozen=True, slots=True)
class KVGroups:
    """How a model's layers lie in blocks. Immutable, the same on every rank."""

    windows: tuple[int | None, ...]  # of each group, widest first; see `KVFootprint`
    layers: tuple[tuple[int, ...], ...]  # of each group
    num_places: int  # layers that a group has room for; some groups leave places empty

    @property
    def num_groups(self) -> int:
        return len(self.windows)

    @property
    def num_slots(self) -> int:
        """Layers that a block of each group has room for: the model's, or more."""
        return self.num_groups * self.num_places


def group_layers(windows: Sequence[int | None], max_len: int) -> KVGroups:
    """windows: of each layer, tokens that one sees, itself included; None: all. max_len: the most
    tokens of a sequence.

    Chooses what holds least memory, on the mean of sequences within the narrowest window and of
    the longest ones.
    """
    seen = [None if window is None or window >= max_len else window for window in windows]
    kinds = _kinds(seen)
    candidates = [_one_group(seen)]
    if len(kinds) > 1:
        most = max(len(layers) for layers in kinds.values())
        candidates += [_split(kinds, num_places) for num_places in range(most, 0, -1)]
    return min(candidates, key=lambda groups: _cost(groups, seen, max_len))


def _kinds(seen: Sequence[int | None]) -> dict[int | None, list[int]]:
    """Layers by what they see, widest first."""
    kinds: dict[int | None, list[int]] = {}
    for layer, window in enumerate(seen):
        kinds.setdefault(window, []).append(layer)
    return dict(sorted(kinds.items(), key=lambda kind: (kind[0] is not None, -(kind[0] or 0))))


def _one_group(seen: Sequence[int | None]) -> KVGroups:
    """All layers keep what any of them sees."""
    widest = next(iter(_kinds(seen)))
    return KVGroups((widest,), (tuple(range(len(seen))),), len(seen))


def _split(kinds: dict[int | None, list[int]], num_places: int) -> KVGroups:
    windows: list[int | None] = []
    groups: list[tuple[int, ...]] = []
    for window, layers in kinds.items():
        for start in range(0, len(layers), num_places):
            windows.append(window)
            groups.append(tuple(layers[start : start + num_places]))
    return KVGroups(tuple(windows), tuple(groups), num_places)


def _cost(groups: KVGroups, seen: Sequence[int | None], max_len: int) -> float:
    """In what the layers would hold if each gave back its own."""
    narrowest = min(_tokens_held(window, max_len) for window in seen)
    ratios = []
    for num_tokens in (narrowest, max_len):
        least = sum(_tokens_held(window, num_tokens) for window in seen)
        held = sum(_tokens_held(window, num_tokens) for window in groups.windows)
        ratios.append(held * groups.num_places / least)
    return sum(ratios) / len(ratios) * (1 + _GROUP_COST * groups.num_groups)


def _tokens_held(window: int | None, num_tokens: int) -> int:
    return num_tokens if window is None else min(window, num_tokens)
