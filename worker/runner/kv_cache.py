"""The tensors behind one rank's KV blocks. Which block is whose, the leader decides."""

import torch
from torch import Tensor

from worker.attention.base import LayerKVCache
from worker.kv_groups import KVGroups
from worker.layers.zeros import zeros


def allocate_kv_caches(
    groups: KVGroups,
    num_blocks: int,
    block_size: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    is_shared: bool = False,
    num_spare: int = 0,
) -> list[LayerKVCache]:
    """One cache per layer, zeroed: attention gathers whole blocks and masks what was never written,
    and a stray NaN would survive the mask. `num_blocks`: for each group. `is_shared`: keys and
    values are the same numbers. `num_spare`: blocks behind those, for tokens that mean nothing.

    Layers of several groups that have the same place in theirs share tensors, whose blocks are
    dealt out to all groups.
    """
    num_blocks = num_blocks * groups.num_groups + num_spare
    shape = (num_blocks, block_size, num_kv_heads, head_dim)

    def pair() -> tuple[Tensor, Tensor]:
        k = zeros(shape, dtype, device)
        return k, k if is_shared else zeros(shape, dtype, device)

    pairs = [pair() for _ in range(groups.num_places)]
    caches = {
        layer: LayerKVCache(*pairs[place], group)
        for group, layers in enumerate(groups.layers)
        for place, layer in enumerate(layers)
    }
    return [caches[layer] for layer in sorted(caches)]
