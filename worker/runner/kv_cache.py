"""The tensors behind one rank's KV blocks. Which block is whose, the leader decides."""

import torch

from worker.attention.base import LayerKVCache
from worker.layers.zeros import zeros


def allocate_kv_caches(
    num_layers: int,
    num_blocks: int,
    block_size: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    is_shared: bool = False,
) -> list[LayerKVCache]:
    """One cache per layer, zeroed: attention gathers whole blocks and masks what was never written,
    and a stray NaN would survive the mask. `is_shared`: keys and values are the same numbers.
    """
    shape = (num_blocks, block_size, num_kv_heads, head_dim)
    if is_shared:
        latents = [zeros(shape, dtype, device) for _ in range(num_layers)]
        return [LayerKVCache(latent, latent) for latent in latents]
    return [
        LayerKVCache(zeros(shape, dtype, device), zeros(shape, dtype, device))
        for _ in range(num_layers)
    ]
