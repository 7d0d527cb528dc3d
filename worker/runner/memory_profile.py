"""What a rank's card is really filled with, measured by the greatest steps before the cache is
sized.

A card that runs out of memory in mid-step ends its replica, and a step's scratch depends on kernels
whose needs no formula knows. So the runner computes the greatest step there can be over a cache of
one block, and the KV cache gets what is left. Knows no model; the device is behind a MemoryProbe.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from worker.config import RunnerConfig
from worker.engine.sampling_params import SamplingParams
from worker.engine.step import AdmittedSequence, ScheduledSequence, StepPlan
from worker.errors import MemoryPlanError
from worker.layers.shard import divide_up
from worker.memory_plan import MemoryPlan

_GIB = 1 << 30
# What the driver keeps of a captured graph's kernels, a layer: some ten to twenty nodes.
_GRAPH_LAYER_BYTES = 256 << 10
# Truncated sampling looks at a row from all sides: nothing a request can ask for takes more.
_SAMPLING = SamplingParams(max_tokens=1, temperature=0.7, top_p=0.9, top_k=40, min_p=0.01)
_FLAGS = (
    "raise --gpu-memory-utilization, lower --max-num-batched-tokens, --max-num-seqs or "
    "--max-model-len, or use more ranks (--tensor-parallel-size)"
)


class MemoryProbe(Protocol):
    """A device's memory, in bytes. `free_at_start`: before this process took any."""

    free_at_start: int

    def free(self) -> int:
        """Left on the device by all its processes."""
        ...

    def held(self) -> int:
        """In tensors of this process."""
        ...

    def reserved(self) -> int:
        """Taken from the device for tensors of this process, whether in use or not."""
        ...

    def begin_peak(self) -> None: ...

    def peak(self) -> int:
        """The most that was held at once since `begin_peak`."""
        ...

    def trim(self) -> None:
        """Gives back what is reserved but not held."""
        ...


class CudaMemoryProbe:
    """One card, as the driver and torch's allocator count. Made before anything is loaded."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.free_at_start = self.free()

    def free(self) -> int:
        return torch.cuda.mem_get_info(self._device)[0]

    def held(self) -> int:
        return torch.cuda.memory_allocated(self._device)

    def reserved(self) -> int:
        return torch.cuda.memory_reserved(self._device)

    def begin_peak(self) -> None:
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_allocated(self._device)

    def trim(self) -> None:
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()


def device_probe(device: torch.device) -> MemoryProbe | None:
    """None where estimates do: a CPU's memory can be had from others."""
    return CudaMemoryProbe(device) if device.type == "cuda" else None


@dataclass(frozen=True, slots=True)
class MemoryProfile:
    """Bytes of one rank, as measured."""

    weight_bytes: int
    activation_bytes: int  # the most that a step holds beside
    graph_bytes: int  # set aside for captured steps
    other_bytes: int  # what libraries hold outside of torch's allocator

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.activation_bytes + self.graph_bytes + self.other_bytes


def measure_memory(
    probe: MemoryProbe,
    steps: Sequence[Callable[[], object]],
    graph_margin_bytes: int = 0,
    static_bytes: int = 0,
) -> MemoryProfile:
    """`steps`: the greatest there are; the last is the greatest that is captured, and what it holds
    counts once more, beside the margin: graphs keep their scratch. `static_bytes`: held by then for
    graphs.

    Raises: MemoryPlanError when a step does not fit.
    """
    held_bytes = probe.held()
    peaks: list[int] = []
    for step in steps:
        probe.begin_peak()
        try:
            step()
        except torch.OutOfMemoryError as error:
            raise MemoryPlanError(
                f"the greatest step does not fit beside the weights: {error}; {_FLAGS}"
            ) from error
        peaks.append(max(0, probe.peak() - held_bytes))
    probe.trim()
    other_bytes = max(0, probe.free_at_start - probe.free() - probe.reserved())
    graph_bytes = graph_margin_bytes + peaks[-1] if graph_margin_bytes else 0
    return MemoryProfile(
        held_bytes - static_bytes, max(peaks), graph_bytes + static_bytes, other_bytes
    )


def graph_margin_bytes(num_layers: int, num_graphs: int) -> int:
    return num_layers * num_graphs * _GRAPH_LAYER_BYTES


def fitted_plan(plan: MemoryPlan, profile: MemoryProfile, config: RunnerConfig) -> MemoryPlan:
    """The plan with what was measured instead of what was estimated.

    Raises: MemoryPlanError when nothing is left for the KV cache, or less than was asked for.
    """
    room = plan.budget_bytes - profile.total_bytes
    num_blocks, bound = max(0, room) // plan.block_bytes, "what is left"
    asked, flag = _asked(plan, config)
    if asked is not None:
        if asked > num_blocks:
            raise MemoryPlanError(
                f"{flag} asks for {asked} KV blocks, but {num_blocks} fit; {_FLAGS}\n"
                + describe(plan, profile, num_blocks)
            )
        num_blocks, bound = asked, flag
    if num_blocks < 1:
        raise MemoryPlanError(
            f"nothing is left for the KV cache; {_FLAGS}\n" + describe(plan, profile, 0)
        )
    beside = profile.total_bytes - profile.weight_bytes
    return replace(
        plan,
        weight_bytes=profile.weight_bytes,
        activation_bytes=beside,
        num_blocks=num_blocks,
        bound=bound,
    )


def _asked(plan: MemoryPlan, config: RunnerConfig) -> tuple[int | None, str]:
    if config.num_blocks is not None:
        return config.num_blocks, "--num-gpu-blocks-override"
    if config.kv_cache_bytes is not None:
        return config.kv_cache_bytes // plan.block_bytes, "--kv-cache-memory-bytes"
    return None, ""


def describe(plan: MemoryPlan, profile: MemoryProfile, num_blocks: int) -> str:
    """One line for an operator: where the budget goes."""
    cache = num_blocks * plan.block_bytes
    parts = (
        ("weights", profile.weight_bytes),
        ("activations", profile.activation_bytes),
        ("graphs", profile.graph_bytes),
        ("libraries", profile.other_bytes),
        ("KV cache", cache),
        ("spare", plan.budget_bytes - profile.total_bytes - cache),
    )
    listed = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in parts)
    return f"measured, GiB of {plan.budget_bytes / _GIB:.2f}: {listed}"


def greatest_step(
    config: RunnerConfig, max_model_len: int, num_tokens: int, num_groups: int = 1
) -> StepPlan:
    """Of `num_tokens` tokens: as many sequences as there can be, each at the end of the longest
    context and sampled; what they leave of the tokens are chunks. All read and write block 0.
    """
    num_seqs = min(config.max_num_seqs, num_tokens)
    spare = num_tokens - num_seqs
    table = [0] * (num_groups * divide_up(max_model_len, config.block_size))
    sequences: list[ScheduledSequence] = []
    admitted: list[AdmittedSequence] = []
    for slot in range(num_seqs):
        length = 1 + min(spare, max_model_len - 1)
        spare -= length - 1
        start = max_model_len - length
        sequences.append(ScheduledSequence(slot, start, length, table, True))
        admitted.append(AdmittedSequence(slot, [0], [], _SAMPLING))
    count = sum(sequence.num_tokens for sequence in sequences)
    return StepPlan(0, [0] * count, sequences, admitted)
