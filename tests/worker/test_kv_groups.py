"""How layers of published models are grouped, and what it saves."""

import pytest

from worker.engine.kv_footprint import KVFootprint
from worker.kv_groups import KVGroups, group_layers

BLOCK_SIZE = 16


def every(count: int, num_layers: int, window: int) -> list[int | None]:
    """One layer of `count` sees all, the last of them."""
    return [window if (layer + 1) % count else None for layer in range(num_layers)]


def assert_whole(groups: KVGroups, windows: list[int | None], max_len: int) -> None:
    """Each layer has one place, among layers that see as much or more."""
    layers = [layer for members in groups.layers for layer in members]
    assert sorted(layers) == list(range(len(windows)))
    for window, members in zip(groups.windows, groups.layers, strict=True):
        assert 0 < len(members) <= groups.num_places
        for layer in members:
            seen = windows[layer] or max_len
            assert min(seen, max_len) <= (window or max_len)
    KVFootprint(BLOCK_SIZE, groups.windows)  # widest first


@pytest.mark.parametrize(
    ("windows", "max_len", "num_groups", "num_places"),
    [
        pytest.param([None] * 32, 8192, 1, 32, id="all see all"),
        pytest.param([4096] * 32, 32768, 1, 32, id="all have one window"),
        pytest.param(every(2, 26, 4096), 8192, 2, 13, id="Gemma 2 2B"),
        pytest.param(every(2, 26, 4096), 4096, 1, 26, id="none sees less than a sequence"),
        pytest.param(every(6, 26, 512), 32768, 7, 4, id="Gemma 3 1B"),
        pytest.param(every(6, 26, 512), 600, 1, 26, id="hardly longer than a window"),
        pytest.param(every(6, 48, 1024), 131072, 6, 8, id="Gemma 3 12B"),
        pytest.param(every(6, 62, 1024), 131072, 6, 11, id="Gemma 3 27B"),
        pytest.param(every(2, 24, 128), 131072, 2, 12, id="gpt-oss 20B"),
        pytest.param(every(4, 64, 4096), 65536, 4, 16, id="OLMo 3 32B"),
        pytest.param([128] * 10 + [1024] * 10, 32768, 2, 10, id="two windows"),
    ],
)
def test_layers_of_known_models(
    windows: list[int | None], max_len: int, num_groups: int, num_places: int
) -> None:
    groups = group_layers(windows, max_len)
    assert (groups.num_groups, groups.num_places) == (num_groups, num_places)
    assert_whole(groups, windows, max_len)


@pytest.mark.parametrize("num_layers", range(2, 40, 3))
@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize("max_len", [64, 1000, 100_000])
def test_every_layer_has_its_place(num_layers: int, count: int, max_len: int) -> None:
    windows = every(count, num_layers, 512)
    assert_whole(group_layers(windows, max_len), windows, max_len)


@pytest.mark.parametrize(
    ("windows", "max_len", "least_gain"),
    [
        pytest.param(every(6, 48, 1024), 131072, 5.5, id="Gemma 3 12B"),
        pytest.param(every(6, 26, 512), 32768, 5.0, id="Gemma 3 1B"),
        pytest.param(every(2, 24, 128), 131072, 1.95, id="gpt-oss 20B"),
        pytest.param(every(2, 42, 4096), 8192, 1.3, id="Gemma 2 9B"),
    ],
)
def test_the_same_memory_holds_so_much_more_of_long_sequences(
    windows: list[int | None], max_len: int, least_gain: float
) -> None:
    groups = group_layers(windows, max_len)
    held = KVFootprint(BLOCK_SIZE, groups.windows).num_held(max_len, chunk=1)
    layer_blocks = held * groups.num_places
    whole = len(windows) * max_len // BLOCK_SIZE
    assert whole / layer_blocks > least_gain
