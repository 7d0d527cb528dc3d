"""Steps of one kind, summed up: how long, made of what, and how near to what the machine allows.

Pure; `engine.py` prints what comes of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.limits import Limits, chunk_seconds, decode_seconds
from benchmarks.load import percentile
from benchmarks.shapes import Shape
from benchmarks.step_parts import PARTS, StepTimes


@dataclass(frozen=True, slots=True)
class StepSummary:
    """Seconds. `parts_s` are means and add up to `mean_s`."""

    kind: str  # decode | prompt | mixed
    num_steps: int
    p50_s: float
    mean_s: float
    parts_s: dict[str, float]
    device_s: float | None  # the forward pass on the card, mean; None: on no card
    of_limit: float | None  # None: unknown, or mixed steps

    @property
    def shares(self) -> dict[str, float]:
        return {part: seconds / self.mean_s for part, seconds in self.parts_s.items()}


def summarize_steps(
    steps: Sequence[StepTimes], shape: Shape | None, limits: Limits | None
) -> list[StepSummary]:
    """One summary for each kind of steps that there were."""
    by_kind: dict[str, list[StepTimes]] = {}
    for step in steps:
        by_kind.setdefault(_kind(step), []).append(step)
    return [_summary(kind, by_kind[kind], shape, limits) for kind in sorted(by_kind)]


def _kind(step: StepTimes) -> str:
    if step.has_prompts:
        return "mixed" if step.has_decodes else "prompt"
    return "decode"


def _summary(
    kind: str, steps: list[StepTimes], shape: Shape | None, limits: Limits | None
) -> StepSummary:
    seconds = sum(step.seconds for step in steps)
    parts = zip(*(step.parts_s for step in steps), strict=True)
    on_device = [s for step in steps if (s := step.device_s) is not None]
    of_limit = None
    if shape is not None and limits is not None and kind != "mixed":
        limit_s = _decode_limit_s if kind == "decode" else _prompt_limit_s
        of_limit = sum(limit_s(step, shape, limits) for step in steps) / seconds
    return StepSummary(
        kind,
        len(steps),
        percentile([step.seconds for step in steps], 0.5),
        seconds / len(steps),
        {name: sum(part) / len(steps) for name, part in zip(PARTS, parts, strict=True)},
        sum(on_device) / len(on_device) if on_device else None,
        of_limit,
    )


def _decode_limit_s(step: StepTimes, shape: Shape, limits: Limits) -> float:
    sequences = step.plan.sequences
    context = sum(s.start + 1 for s in sequences) / len(sequences)
    return decode_seconds(shape, limits, len(sequences), context)


def _prompt_limit_s(step: StepTimes, shape: Shape, limits: Limits) -> float:
    return sum(chunk_seconds(shape, limits, s.start, s.num_tokens) for s in step.plan.sequences)
