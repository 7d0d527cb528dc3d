"""Which device a rank computes on, with how many threads, and how much memory it may plan with."""

import os

import torch

from worker.config import RunnerConfig
from worker.memory_plan import MemoryPlan, host_available_bytes, plan_memory
from worker.models.config import ModelConfig

SMALL_MODEL_BYTES = 32 << 20  # of one rank


def resolve_device(device: torch.device | str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def default_num_threads(ranks_on_host: int, weight_bytes: int) -> int:
    """Cores this process may run on, shared evenly; one for a model so small that its products take
    microseconds: their threads then wait for each other, and for the gateway, longer than they
    compute (measured through a cluster on two cores: 5.0 ms a token with two, 2.6 with one).
    """
    if weight_bytes < SMALL_MODEL_BYTES:
        return 1
    try:
        num_cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        num_cores = os.cpu_count() or 1
    return max(1, num_cores // ranks_on_host)


def plan_rank_memory(
    model: ModelConfig, config: RunnerConfig, tp_size: int, device: torch.device
) -> MemoryPlan:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        # What others hold of the card counts against the share that may be used.
        available = free - int(total * (1 - config.memory_utilization))
        available = int(max(0, available) / config.memory_utilization)
        return plan_memory(model, config, tp_size, "cuda", available)
    return plan_memory(model, config, tp_size, "cpu", host_available_bytes())
