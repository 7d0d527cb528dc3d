"""The tensors behind one rank's KV blocks. Which block is whose, the leader decides."""

import torch

from worker.attention.base import LayerKVCache


def allocate_kv_caches(
    num_layers: int,
    num_blocks: int,
    block_size: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
) -> list[LayerKVCache]:
    """One cache per layer, zeroed: attention gathers whole blocks and masks what was never written,
    and a stray NaN would survive the mask.
    """
    shape = (num_blocks, block_size, num_kv_heads, head_dim)
    return [
        LayerKVCache(
            torch.zeros(shape, dtype=dtype, device=device),
            torch.zeros(shape, dtype=dtype, device=device),
        )
        for _ in range(num_layers)
    ]
