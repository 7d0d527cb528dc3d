"""A mixture of experts as the structure of the native program, its matrices packed on the way.

Each expert's matrices become packed weights of their own; the torch module keeps none of them.
Called by `worker.native.terms`.
"""

import ctypes
from collections.abc import Iterator

import torch
from torch import Tensor

from worker.layers.linear import frozen
from worker.layers.moe import MoE, SharedExpert
from worker.native.packing import Order, PackedWeight, Packer, as_they_are, gated, gated_in_turns
from worker.native.structs import MatrixStruct, MoEStruct
from worker.parallel.group import TPGroup


def moe_struct(
    moe: MoE, hidden_size: int, tp: TPGroup, packer: Packer, kept: list[object]
) -> MoEStruct:
    """What the structure points to goes to `kept`. The bias of the second product of an expert that
    several ranks have is rank 0's alone.
    """
    spec = moe.spec
    struct = MoEStruct(
        router_size=hidden_size,
        num_experts=spec.num_experts,
        first_expert=moe.experts.own.start,
        num_own=len(moe.experts.own),
        top_k=spec.top_k,
        renormalize=spec.renormalize,
        is_sigmoid=spec.is_sigmoid,
        num_groups=spec.num_groups,
        top_groups=spec.top_groups,
        best_of_group=spec.best_of_group,
        weight_scale=spec.weight_scale,
    )
    if spec.swiglu is not None:
        struct.swiglu_alpha, struct.swiglu_limit = spec.swiglu.alpha, spec.swiglu.limit
    keeper = _Keeper(kept)
    router = moe.router
    struct.router = keeper.matrix(packer.pack(router.weight, router.bias))
    router.weight = _nothing(torch.float32)
    if router.choice_bias is not None:
        struct.choice_bias = keeper.vector(router.choice_bias)
    struct.up, struct.down = _pack_experts(moe, tp, packer, keeper)
    if moe.shared is not None:
        _fill_shared(struct, moe.shared, packer, keeper)
    return struct


def moe_matrices(moe: MoE) -> Iterator[tuple[Tensor, Order]]:
    """What `moe_struct` packs."""
    yield moe.router.weight, as_they_are
    for matrix in moe.experts.gate_up:
        yield matrix, _gate_up_order(moe)
    for matrix in moe.experts.down:
        yield matrix, as_they_are
    if moe.shared is not None:
        yield moe.shared.gate_up.weight, gated
        yield moe.shared.down, as_they_are


class _Keeper:
    """Addresses for a structure, and what must live as long as it does."""

    def __init__(self, kept: list[object]) -> None:
        self._kept = kept

    def matrix(self, packed: PackedWeight) -> MatrixStruct:
        self._kept.append(packed)
        return packed.struct()

    def matrices(self, packed: list[PackedWeight]) -> ctypes.Array[MatrixStruct]:
        array = (MatrixStruct * len(packed))(*map(self.matrix, packed))
        self._kept.append(array)
        return array

    def vector(self, x: Tensor) -> int:
        wide = x.float().contiguous()
        self._kept.append(wide)
        return wide.data_ptr()


def _pack_experts(
    moe: MoE, tp: TPGroup, packer: Packer, keeper: _Keeper
) -> tuple[ctypes.Array[MatrixStruct], ctypes.Array[MatrixStruct]]:
    experts, is_whole = moe.experts, moe.spec.is_expert_parallel
    gate_up, gate_up_bias = experts.gate_up, experts.gate_up_bias
    ups = [
        packer.pack(
            matrix, None if gate_up_bias is None else gate_up_bias[expert], _gate_up_order(moe)
        )
        for expert, matrix in enumerate(gate_up)
    ]
    experts.gate_up = _nothing(gate_up.dtype)
    down_bias = experts.down_bias if is_whole or tp.rank == 0 else None
    downs = [
        packer.pack(matrix, None if down_bias is None else down_bias[expert])
        for expert, matrix in enumerate(experts.down)
    ]
    experts.down = _nothing(gate_up.dtype)
    return keeper.matrices(ups), keeper.matrices(downs)


def _gate_up_order(moe: MoE) -> Order:
    return gated if moe.spec.swiglu is None else gated_in_turns


def _fill_shared(struct: MoEStruct, shared: SharedExpert, packer: Packer, keeper: _Keeper) -> None:
    dtype = shared.down.dtype
    struct.shared_up = keeper.matrix(packer.pack(shared.gate_up.weight, order=gated))
    shared.gate_up.weight = _nothing(dtype)
    struct.shared_down = keeper.matrix(packer.pack(shared.down))
    shared.down = _nothing(dtype)
    if shared.gate is not None:
        struct.shared_gate = keeper.vector(shared.gate.flatten())


def _nothing(dtype: torch.dtype) -> torch.nn.Parameter:
    """Stands for a parameter that is kept packed."""
    return frozen(torch.empty(0, dtype=dtype))
