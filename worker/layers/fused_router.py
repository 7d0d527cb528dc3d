"""From a router's logits to each token's experts and weights, in one kernel on GPUs.

torch takes eight launches for it, most of what a mixture's layer costs at small batches. One
program a token: its scores stay in registers, and experts are taken one after another. The torch
formulas beside which it is tested are in `moe.py`, which calls this.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from worker.layers.moe_spec import MoESpec


@triton.jit
def _largest(x, places):
    """The largest of all of x, [groups, size], and the first of the places where it stands."""
    top = tl.max(tl.max(x, 1), 0)
    first = tl.min(tl.min(tl.where(x == top, places, 1 << 30), 1), 0)
    return top, first


@triton.jit
def _route_kernel(
    logits_ptr, bias_ptr, weights_ptr, ids_ptr,  # [T, E] fp32, [E], [T, TOP_K], [T, TOP_K] int64
    weight_scale,
    NUM_EXPERTS: tl.constexpr, NUM_GROUPS: tl.constexpr, PADDED_GROUPS: tl.constexpr,
    PADDED_SIZE: tl.constexpr, TOP_K: tl.constexpr, PADDED_K: tl.constexpr,
    TOP_GROUPS: tl.constexpr, BEST_OF_GROUP: tl.constexpr, IS_SIGMOID: tl.constexpr,
    HAS_BIAS: tl.constexpr, RENORMALIZE: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    SIZE: tl.constexpr = NUM_EXPERTS // NUM_GROUPS
    groups, columns = tl.arange(0, PADDED_GROUPS), tl.arange(0, PADDED_SIZE)
    experts = groups[:, None] * SIZE + columns[None, :]
    is_expert = (groups < NUM_GROUPS)[:, None] & (columns < SIZE)[None, :]
    logits = tl.load(logits_ptr + token * NUM_EXPERTS + experts, mask=is_expert, other=0.0)
    if IS_SIGMOID:
        scores = tl.sigmoid(logits)
    else:
        logits = tl.where(is_expert, logits, float("-inf"))
        scores = tl.exp(logits - tl.max(tl.max(logits, 1), 0))
        scores = scores / tl.sum(tl.sum(scores, 1), 0)
    choices = scores
    if HAS_BIAS:
        choices = choices + tl.load(bias_ptr + experts, mask=is_expert, other=0.0)
    choices = tl.where(is_expert, choices, float("-inf"))
    if NUM_GROUPS > 1:
        rest = choices
        of_group = tl.zeros([PADDED_GROUPS], dtype=tl.float32)
        for _ in tl.static_range(BEST_OF_GROUP):
            best = tl.max(rest, 1)
            of_group += best
            is_best = rest == best[:, None]
            first = tl.min(tl.where(is_best, columns[None, :], 1 << 30), 1)
            rest = tl.where(columns[None, :] == first[:, None], float("-inf"), rest)
        of_group = tl.where(groups < NUM_GROUPS, of_group, float("-inf"))
        is_in = groups < 0
        for _ in tl.static_range(TOP_GROUPS):
            first = tl.min(tl.where(of_group == tl.max(of_group, 0), groups, 1 << 30), 0)
            is_in = is_in | (groups == first)
            of_group = tl.where(groups == first, float("-inf"), of_group)
        choices = tl.where(is_in[:, None], choices, float("-inf"))
    ranks = tl.arange(0, PADDED_K)
    weights = tl.zeros([PADDED_K], dtype=tl.float32)
    ids = tl.zeros([PADDED_K], dtype=tl.int32)
    for rank in tl.static_range(TOP_K):
        _, expert = _largest(choices, experts)
        weight = tl.sum(tl.sum(tl.where(experts == expert, scores, 0.0), 1), 0)
        weights = tl.where(ranks == rank, weight, weights)
        # Where logits are NaN nothing is the largest; an id must still be one.
        ids = tl.where(ranks == rank, tl.minimum(expert, NUM_EXPERTS - 1), ids)
        choices = tl.where(experts == expert, float("-inf"), choices)
    if RENORMALIZE:
        weights = weights / tl.sum(weights, 0)
    is_rank = ranks < TOP_K
    tl.store(weights_ptr + token * TOP_K + ranks, weights * weight_scale, mask=is_rank)
    tl.store(ids_ptr + token * TOP_K + ranks, ids.to(tl.int64), mask=is_rank)


def route(logits: Tensor, choice_bias: Tensor | None, spec: MoESpec) -> tuple[Tensor, Tensor]:
    """logits: [T, E] fp32, contiguous; choice_bias: [E] fp32; returns weights [T, top_k] fp32 and
    expert ids [T, top_k] int64. Of equal choices the first expert is taken.
    """
    num_tokens, num_experts = logits.shape
    weights = torch.empty((num_tokens, spec.top_k), dtype=torch.float32, device=logits.device)
    ids = torch.empty((num_tokens, spec.top_k), dtype=torch.int64, device=logits.device)
    if num_tokens == 0:
        return weights, ids
    assert logits.is_contiguous() and logits.dtype == torch.float32
    _route_kernel[(num_tokens,)](
        logits,
        logits if choice_bias is None else choice_bias,
        weights,
        ids,
        float(spec.weight_scale),
        NUM_EXPERTS=num_experts,
        NUM_GROUPS=spec.num_groups,
        PADDED_GROUPS=triton.next_power_of_2(spec.num_groups),
        PADDED_SIZE=triton.next_power_of_2(num_experts // spec.num_groups),
        TOP_K=spec.top_k,
        PADDED_K=triton.next_power_of_2(spec.top_k),
        TOP_GROUPS=spec.top_groups,
        BEST_OF_GROUP=spec.best_of_group,
        IS_SIGMOID=spec.is_sigmoid,
        HAS_BIAS=choice_bias is not None,
        RENORMALIZE=spec.renormalize,
        num_warps=1,
    )
    return weights, ids
