"""Normalization on GPUs in one kernel, with the residual sum before it where there is one.

torch writes the sum and reads it again, and widens weights that have an offset; here a row stays in
registers. One program a row. The torch formulas beside which it is tested are in `norm.py`, whose
layers call this.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _norm_kernel(
    x_ptr, y_ptr, sum_ptr, out_ptr,  # [T, SIZE]; sum = x + alpha * y
    weight_ptr, bias_ptr,  # [SIZE]
    x_stride, y_stride, alpha, eps, offset,
    SIZE: tl.constexpr, PADDED: tl.constexpr, IS_RMS: tl.constexpr, HAS_SUM: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, PADDED)
    is_column = columns < SIZE
    x = tl.load(x_ptr + row * x_stride + columns, mask=is_column, other=0.0).to(tl.float32)
    if HAS_SUM:
        y = tl.load(y_ptr + row * y_stride + columns, mask=is_column, other=0.0).to(tl.float32)
        rounded = (x + alpha * y).to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + row * SIZE + columns, rounded, mask=is_column)
        x = rounded.to(tl.float32)  # what the next layer will read
    if not IS_RMS:
        mean = tl.sum(x, 0) / SIZE
        x = tl.where(is_column, x - mean, 0.0)
    x = x * tl.rsqrt(tl.sum(x * x, 0) / SIZE + eps)
    if HAS_WEIGHT:
        weight = tl.load(weight_ptr + columns, mask=is_column, other=0.0).to(tl.float32)
        x = x * (weight + offset)
    if HAS_BIAS:
        x = x + tl.load(bias_ptr + columns, mask=is_column, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * SIZE + columns, x.to(out_ptr.dtype.element_ty), mask=is_column)


def normed(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    offset: float = 0.0,
    is_rms: bool = True,
) -> Tensor:
    """RMS norm, weights meaning weight + offset, or layer norm. x: [T, size], rows contiguous."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, x, out, out, weight, bias, 1.0, eps, offset, is_rms, has_sum=False)
    return out


def sum_and_normed(
    x: Tensor,
    y: Tensor,
    alpha: float,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    offset: float = 0.0,
    is_rms: bool = True,
) -> tuple[Tensor, Tensor]:
    """x + alpha * y in the type of x, and its norm. x, y: [T, size], rows contiguous."""
    total = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    out = torch.empty_like(total)
    _launch(x, y, total, out, weight, bias, alpha, eps, offset, is_rms, has_sum=True)
    return total, out


def _launch(
    x: Tensor,
    y: Tensor,
    total: Tensor,
    out: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    alpha: float,
    eps: float,
    offset: float,
    is_rms: bool,
    has_sum: bool,
) -> None:
    num_rows, size = x.shape
    if num_rows == 0:
        return
    assert x.stride(1) == y.stride(1) == 1, "rows in memory order"
    padded = triton.next_power_of_2(size)
    _norm_kernel[(num_rows,)](
        x,
        y,
        total,
        out,
        out if weight is None else weight,
        out if bias is None else bias,
        x.stride(0),
        y.stride(0),
        float(alpha),
        float(eps),
        float(offset),
        SIZE=size,
        PADDED=padded,
        IS_RMS=is_rms,
        HAS_SUM=has_sum,
        HAS_WEIGHT=weight is not None,
        HAS_BIAS=bias is not None,
        # 16 numbers a thread: enough loads under way, no spilled registers
        num_warps=min(max(padded // 512, 1), 16),
    )
