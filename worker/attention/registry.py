"""Attention backends by name. One file and one line here make a new one selectable."""

import logging
import os
import shutil
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import torch

from worker.attention.base import AttentionBackend
from worker.attention.gathered import gathered_attention
from worker.attention.reference import ReferencePlan
from worker.errors import InvalidRequest

logger = logging.getLogger(__name__)

_MIN_CAPABILITY = (8, 0)  # of a card that Triton has bf16 products and asynchronous copies for


def _triton_attention() -> AttentionBackend:
    from worker.attention.triton_paged import TritonPlan  # loads a compiler

    return TritonPlan


BACKENDS: dict[str, Callable[[], AttentionBackend]] = {
    "gathered": lambda: gathered_attention,
    "reference": lambda: ReferencePlan,
    "triton": _triton_attention,
}


def attention_backend(name: str, device: torch.device) -> AttentionBackend:
    """`auto` is the fastest that runs on the device: `triton` on GPUs that it has kernels for, else
    `gathered`.
    """
    if name == "auto":
        name = "triton" if wants_triton(name, device) else "gathered"
    if name not in BACKENDS:
        known = ", ".join(sorted(BACKENDS))
        raise InvalidRequest(
            f"unknown attention backend {name!r}; known: {known}", "attention_backend"
        )
    if name == "triton" and not (_compiles_triton(device) or _interprets_triton()):
        raise InvalidRequest(
            "the attention backend 'triton' needs a CUDA device of compute capability 8.0 or more, "
            f"the package triton and a C compiler; this is {device}",
            "attention_backend",
        )
    return BACKENDS[name]()


def wants_triton(name: str, device: torch.device) -> bool:
    """Whether a model whose attention backend has this name runs on Triton kernels: its attention,
    and then also its layers.
    """
    return name == "triton" or (name == "auto" and _compiles_triton(device))


@cache
def _compiles_triton(device: torch.device) -> bool:
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    if not _has_c_compiler():
        logger.warning("no C compiler, which Triton's launchers want: GPU kernels are torch's")
        return False
    return torch.cuda.get_device_capability(device) >= _MIN_CAPABILITY


def _has_c_compiler() -> bool:
    """Looked for as Triton does."""
    return "CC" in os.environ or any(shutil.which(name) for name in ("gcc", "clang"))


def _interprets_triton() -> bool:
    """Whether this process runs the kernels in Triton's interpreter, on a CPU: tests do."""
    if find_spec("triton") is None:
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)
