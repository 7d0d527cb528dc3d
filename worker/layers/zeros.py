"""Zeroed tensors that cost nothing until written: parameters and KV blocks start as these."""

import math

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 64  # a cache line, and the widest vector load: what torch's own allocator gives


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On a CPU the system hands out zero pages at their first use: nothing is written here, and
    what is never used takes no memory.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # numpy's zeros are calloc's; torch's are written out (0.7 s a GiB, and again by the loader).
    num_bytes = math.prod(shape) * dtype.itemsize
    buffer = np.zeros(num_bytes + _ALIGNMENT, dtype=np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return torch.from_numpy(buffer[start : start + num_bytes]).view(dtype).view(shape)
