"""The tensors behind one rank's KV blocks. Which block is whose, the leader decides."""

import math

import numpy as np
import torch
from torch import Tensor

from worker.attention.base import LayerKVCache


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
        latents = [_zeros(shape, dtype, device) for _ in range(num_layers)]
        return [LayerKVCache(latent, latent) for latent in latents]
    return [
        LayerKVCache(_zeros(shape, dtype, device), _zeros(shape, dtype, device))
        for _ in range(num_layers)
    ]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On a CPU the system hands out zero pages at their first use: nothing is written here, and a
    block that is never used takes no memory.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # numpy's zeros are calloc's; torch's are written out (0.7 s a GiB).
    untouched = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(untouched).view(dtype).view(shape)
