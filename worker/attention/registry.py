"""Attention backends by name. One file and one line here make a new one selectable."""

import torch

from worker.attention.base import AttentionBackend
from worker.attention.gathered import gathered_attention
from worker.attention.reference import ReferencePlan
from worker.errors import InvalidRequest

BACKENDS: dict[str, AttentionBackend] = {
    "gathered": gathered_attention,
    "reference": ReferencePlan,
}


def attention_backend(name: str, device: torch.device) -> AttentionBackend:
    """`auto` is the fastest that runs on the device: today `gathered` on CPUs and GPUs alike."""
    if name == "auto":
        name = "gathered"
    if name not in BACKENDS:
        known = ", ".join(sorted(BACKENDS))
        raise InvalidRequest(
            f"unknown attention backend {name!r}; known: {known}", "attention_backend"
        )
    return BACKENDS[name]
