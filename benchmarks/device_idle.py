"""How much of the time a card has nothing to do, from the profiler's record of its kernels.

The profiler slows the host down, so the share it gives is an upper bound. Called by `engine.py`.
"""

from collections.abc import Callable, Iterable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


def device_idle_share(run: Callable[[], None]) -> float | None:
    """Of the time between the first kernel's start and the last one's end, while `run` runs.

    None where nothing ran on the card.
    """
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        run()
        torch.cuda.synchronize()
    events = record.events() or []
    return idle_share(
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == DeviceType.CUDA
    )


def idle_share(intervals: Iterable[tuple[float, float]]) -> float | None:
    """Of the span of all intervals, the share that none covers; None of nothing. They may
    overlap."""
    ordered = sorted(intervals)
    if not ordered:
        return None
    busy, end = 0.0, ordered[0][0]
    for start, stop in ordered:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    span = end - ordered[0][0]
    return 1 - busy / span if span else None
