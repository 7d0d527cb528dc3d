"""Packed bf16 weights in twelve bits each, without loss: decoding reads three quarters as much.

Owns when a weight is coded and the tensors it then consists of; the layout is `csrc/bf12.h`'s.
Called by `Packer` for each weight as soon as it is packed.
"""

import ctypes
from dataclasses import replace

import torch
from torch import Tensor

from worker.layers.zeros import zeros
from worker.native.library import Team
from worker.native.packing import PANEL, PackedWeight

_CODE_BYTES, _STRAY_BYTES = 24, 8
_BITS = 12
# Of numbers whose exponent has no code: adding them up one by one must cost little beside the rest.
# Normally distributed weights have one in ten thousand.
_MAX_STRAY_SHARE = 1 / 512
_FEW_STRAYS = 8  # of a panel, in any case


def coded(library: ctypes.CDLL, team: Team, weight: PackedWeight) -> PackedWeight:
    """The same weight, whose memory goes on the way; or `weight` itself where coding would not pay
    or does not apply.
    """
    if weight.dtype != torch.bfloat16 or not weight.data.numel():
        return weight
    num_panels, depth = weight.num_panels, weight.depth
    max_strays = max(_FEW_STRAYS, int(depth * PANEL * _MAX_STRAY_SHARE))
    data = _bytes(num_panels, depth * PANEL * _BITS // 8)
    codes = _bytes(num_panels, _CODE_BYTES)
    strays = _bytes(num_panels, max_strays * _STRAY_BYTES)
    is_coded = library.shoal_encode(
        team.handle,
        weight.data.data_ptr(),
        num_panels,
        depth,
        data.data_ptr(),
        codes.data_ptr(),
        strays.data_ptr(),
        max_strays,
    )
    if not is_coded:
        return weight
    return replace(weight, data=data, codes=codes, strays=strays)


def _bytes(num_panels: int, size: int) -> Tensor:
    return zeros((num_panels, size), torch.uint8, torch.device("cpu"))
