"""One product on the CPU's own kernels, without a model around it.

Knows no model and no clock; `native.py` and `limits.py` measure it, a test checks it.
"""

import ctypes

import torch
from torch import Tensor

from worker.native.library import Team
from worker.native.packing import DTYPES, PANEL, PackedWeight


def multiply(
    library: ctypes.CDLL,
    team: Team,
    x: Tensor,
    weight: PackedWeight,
    out: Tensor | None = None,
) -> Tensor:
    """x: [M, depth] fp32, contiguous; returns `out` [M, N padded], or a new one."""
    if out is None:
        out = torch.empty(len(x), weight.num_panels * PANEL)
    library.shoal_probe_multiply(
        team.handle,
        DTYPES[weight.dtype],
        x.data_ptr(),
        len(x),
        ctypes.byref(weight.struct()),
        out.data_ptr(),
    )
    return out
