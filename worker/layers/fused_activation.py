"""Gated activations on GPUs in one kernel: activation(gate) * up, read and written once.

The torch formulas beside which it is tested are in `activation.py` and `experts.py`, which call it.
`activated` is also what the kernels of experts apply to their products.
"""

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

_SILU, _GELU, _GELU_TANH, _RELU, _CLAMPED_SWIGLU = 0, 1, 2, 3, 4
KINDS: Final = {
    "silu": _SILU,
    "swish": _SILU,
    "gelu": _GELU,
    "gelu_new": _GELU_TANH,
    "gelu_pytorch_tanh": _GELU_TANH,
    "gelu_fast": _GELU_TANH,
    "relu": _RELU,
}
CLAMPED_SWIGLU: Final = _CLAMPED_SWIGLU
_BLOCK = 1024


@triton.jit
def activated(gate, up, alpha, limit, KIND: tl.constexpr):
    """activation(gate) * up, in fp32. alpha and limit: of the clamped SwiGLU."""
    if KIND == 0:
        return gate * tl.sigmoid(gate) * up
    elif KIND == 1:
        return 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476)) * up
    elif KIND == 2:  # tanh(z) = 2 sigmoid(2 z) - 1
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        return gate * tl.sigmoid(2.0 * inner) * up
    elif KIND == 3:
        return tl.maximum(gate, 0.0) * up
    else:
        gate = tl.minimum(gate, limit)
        up = tl.minimum(tl.maximum(up, -limit), limit)
        return (up + 1.0) * gate * tl.sigmoid(gate * alpha)


@triton.jit
def _gated_kernel(
    gate_up_ptr, out_ptr,  # [T, 2 * SIZE], [T, SIZE]
    stride, alpha, limit,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, KIND: tl.constexpr, TAKES_TURNS: tl.constexpr,
):  # fmt: skip
    NUM_PARTS: tl.constexpr = (SIZE + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // NUM_PARTS).to(tl.int64)
    columns = tl.program_id(0) % NUM_PARTS * BLOCK + tl.arange(0, BLOCK)
    is_column = columns < SIZE
    base = gate_up_ptr + row * stride
    if TAKES_TURNS:
        gate = tl.load(base + 2 * columns, mask=is_column, other=0.0)
        up = tl.load(base + 2 * columns + 1, mask=is_column, other=0.0)
    else:
        gate = tl.load(base + columns, mask=is_column, other=0.0)
        up = tl.load(base + SIZE + columns, mask=is_column, other=0.0)
    out = activated(gate.to(tl.float32), up.to(tl.float32), alpha, limit, KIND)
    tl.store(out_ptr + row * SIZE + columns, out.to(out_ptr.dtype.element_ty), mask=is_column)


def gated(
    gate_up: Tensor, kind: int, alpha: float = 0.0, limit: float = 0.0, takes_turns: bool = False
) -> Tensor:
    """gate_up: [T, 2 * n], gate first or, where they take turns, at even places; returns [T, n]."""
    num_rows, width = gate_up.shape
    size = width // 2
    out = torch.empty((num_rows, size), dtype=gate_up.dtype, device=gate_up.device)
    if num_rows == 0:
        return out
    assert gate_up.stride(1) == 1, "rows in memory order"
    block = min(_BLOCK, triton.next_power_of_2(size))
    _gated_kernel[(num_rows * triton.cdiv(size, block),)](
        gate_up,
        out,
        gate_up.stride(0),
        float(alpha),
        float(limit),
        SIZE=size,
        BLOCK=block,
        KIND=kind,
        TAKES_TURNS=takes_turns,
        num_warps=4,
    )
    return out
