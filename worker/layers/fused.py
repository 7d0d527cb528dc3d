"""The seam to fused kernels: whether a layer runs on them is decided once, when it is built.

The kernels are Triton programs in the modules `fused_*`, each tested against the torch operators
that a layer runs without them. This module loads them, and with them a compiler, only for those who
want them.
"""

from functools import cache

from worker.layers.linear import TensorOptions


class FusedKernels:
    """What there is, by its use."""

    def __init__(self) -> None:
        from worker.layers import (
            fused_activation,
            fused_experts,
            fused_latent,
            fused_norm,
            fused_qkv,
            fused_router,
        )

        self.normed = fused_norm.normed
        self.sum_and_normed = fused_norm.sum_and_normed
        self.gated = fused_activation.gated
        self.activation_kinds = fused_activation.KINDS
        self.clamped_swiglu_kind = fused_activation.CLAMPED_SWIGLU
        self.rotate_and_cache = fused_qkv.rotate_and_cache
        self.rotate_and_cache_latent = fused_latent.rotate_and_cache_latent
        self.route = fused_router.route
        self.experts = fused_experts.FusedExperts


_loaded = cache(FusedKernels)


def fused_kernels(options: TensorOptions) -> FusedKernels | None:
    """None: the layer runs torch's operators."""
    return _loaded() if options.fused else None
